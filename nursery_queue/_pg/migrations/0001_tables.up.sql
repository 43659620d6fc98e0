-- The tables of the queue. A task's row does not change once the task has started; where the task
-- is, is which small table holds its position, so a claim never walks future or finished rows.

-- Every statement takes its "now" from here. The clock is the statement's, unless a test
-- has set the session variable, and then one virtual clock moves all of SQL. The body is bound
-- here, not where it is called: so it needs no search_path of its own, which would keep it from
-- being inlined (tests/pg/test_search_path.py).
create function nursery_queue.now() returns timestamptz
language sql stable parallel safe
return coalesce(nullif(current_setting('nursery_queue.now', true), '')::timestamptz,
                statement_timestamp());

-- The same, but later with each look: for what sees more than the statement saw at its start.
create function nursery_queue.clock() returns timestamptz
language sql volatile parallel safe
return coalesce(nullif(current_setting('nursery_queue.now', true), '')::timestamptz,
                clock_timestamp());

-- Whether a worker can read this retry policy: one row that it cannot would keep all others
-- waiting. Null: there is none.
create function nursery_queue.is_backoff(asked jsonb) returns boolean
language sql immutable parallel safe
return asked is null or coalesce(
    ('{}' || asked) - '{initial,maximum,factor,jitter}'::text[] = '{}'
    and ('{"initial": 1, "maximum": 3155760000, "factor": 2, "jitter": 0.5}' || asked)
        @@ 'strict $.initial > 1e-300 && $.maximum >= $.initial
            && $.maximum <= 3155760000
            && $.factor >= 1 && $.factor <= 1000
            && $.jitter >= 0 && $.jitter <= 1', false);

-- Whether this describes a task to be stored when another has ended. Takes exactly what an insert
-- takes, since no caller would be there to get an error.
create function nursery_queue.is_completion(asked jsonb) returns boolean
language sql immutable parallel safe set search_path = pg_catalog, pg_temp
as $$
    select coalesce(
        jsonb_typeof(asked) = 'object'
        and jsonb_typeof(asked -> 'task_type') = 'string'
        and length(asked ->> 'task_type') between 1 and 255
        and coalesce(length(asked ->> 'queue'), 1) <= 255
        and octet_length(coalesce(asked ->> 'key', '1')) between 1 and 200
        and jsonb_typeof(coalesce(asked -> 'key', 'null')) in ('string', 'null')
        and asked - '{task_type,queue,priority,key,run_after,max_attempts,backoff,timeout,keep_for,
                      on_complete,context}'::text[] = '{}'
        and ('{"queue": "default", "priority": 0, "run_after": 0, "max_attempts": 1, "timeout": 1,
               "keep_for": 0}' || asked)
            @@ 'strict $.queue != ""
                && $.priority >= -2147483648 && $.priority <= 2147483647
                && $.priority.floor() == $.priority
                && ($.run_after == 0 || $.run_after > 1e-300)
                && $.run_after <= 3155760000
                && $.max_attempts >= 1 && $.max_attempts <= 2147483647
                && $.max_attempts.floor() == $.max_attempts
                && ($.timeout > 1e-300 && $.timeout <= 1e300 || $.timeout == "infinity")
                && ($.keep_for == 0 || $.keep_for > 1e-300)
                && $.keep_for <= 3155760000'
        and nursery_queue.is_backoff(asked -> 'backoff')
        and (coalesce(asked -> 'on_complete', 'null') = 'null'
             or nursery_queue.is_completion(asked -> 'on_complete')), false)
$$;

-- The defaults of a task of which no more than the type is given, and for how long it is kept when
-- no worker is there to ask.
create table nursery_queue.task_type (
    name        text primary key,
    queue       text not null,
    priority    integer not null,
    keep_for    double precision not null,
    on_complete jsonb,
    -- The parameter whose value is the key of a task, and the key of one that leaves it out.
    key_parameter text,
    key_default   text,
    declared_at timestamptz not null default nursery_queue.now()
);
comment on table nursery_queue.task_type is
    'What code declares: stored by each worker when it starts, so the newest start counts.';

create table nursery_queue.task (
    id           bigint generated always as identity primary key,
    task_type    text not null check (task_type <> ''),
    params       jsonb not null default '{}' check (jsonb_typeof(params) = 'object'),
    -- Left out: as the task type declares.
    queue        text not null check (queue <> ''),
    priority     integer not null,
    -- What divides the queue: a customer, a host. Left out (a character that no key of ours has): as
    -- the task type declares. Null: none.
    key          text default e'\x01',
    -- Instants that any client can read, in any time zone.
    run_at       timestamptz not null default nursery_queue.now()
                 check (run_at between '0002-01-01 00:00+00' and '9998-12-31 00:00+00'),
    created_at   timestamptz not null default nursery_queue.now()
                 check (created_at between '0002-01-01 00:00+00' and '9998-12-31 00:00+00'),
    -- Null means: as the handler's code says today, so a fix in code reaches queued tasks.
    max_attempts integer check (max_attempts >= 1),
    backoff      jsonb check (nursery_queue.is_backoff(backoff)),
    timeout      double precision check (timeout > 0 and timeout <> 'NaN'),
    keep_for     double precision check (keep_for >= 0 and keep_for <= 3155760000),
    dedup_key    text check (dedup_key <> ''),
    -- Seconds from the enqueue for which the key stays taken, also when the task has ended.
    dedup_for    double precision check (dedup_for > 0 and dedup_for <= 3155760000),
    -- The task to be stored when this one has ended, and `context`, which that task is given. Left
    -- out (JSON's null): as the task type declares. Null: none.
    on_complete  jsonb default 'null'
                 check (on_complete is null or nursery_queue.is_completion(on_complete)),
    context      jsonb,
    completes    bigint, -- the task whose end this one tells of
    schedule     text, -- the schedule that made it, and the instant that it stands for
    tick         timestamptz
                 check (tick between '0002-01-01 00:00+00' and '9998-12-31 00:00+00'),
    -- As long as an index takes, whatever the characters: a longer one would be refused only later,
    -- when the task is claimed or parked.
    constraint task_task_type_of_at_most_255_characters check (length(task_type) <= 255),
    constraint task_queue_of_at_most_255_characters check (length(queue) <= 255),
    constraint task_dedup_key_of_at_most_255_characters check (length(dedup_key) <= 255),
    constraint task_key_of_1_to_200_bytes check (octet_length(key) between 1 and 200),
    constraint task_dedup_for_needs_a_dedup_key check (dedup_for is null or dedup_key is not null),
    -- As stored, uncompressed. Clients have their own, smaller limit; this one keeps plain SQL from
    -- storing what no worker could take.
    constraint task_params_of_at_most_64_megabytes check (pg_column_size(params) <= 67108864),
    constraint task_context_of_at_most_64_megabytes check (pg_column_size(context) <= 67108864),
    constraint task_on_complete_of_at_most_64_megabytes
        check (pg_column_size(on_complete) <= 67108864)
);
comment on table nursery_queue.task is
    'What was asked: inserted once, deleted once; debounced, it is replaced before it starts.';

create table nursery_queue.scheduled (
    task_id bigint primary key,
    due_at  timestamptz not null,
    attempt integer not null default 0,
    epoch   integer not null default 0,
    lost    integer not null default 0
) with (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000);
comment on table nursery_queue.scheduled is 'Position of a task due later.';
create index scheduled_due on nursery_queue.scheduled (due_at, task_id);

create table nursery_queue.ready (
    task_id   bigint not null,
    queue     text not null,
    priority  integer not null,
    task_type text not null,
    due_at    timestamptz not null default nursery_queue.now(),
    attempt   integer not null default 0,
    epoch     integer not null default 0,
    lost      integer not null default 0,
    -- Its worker died holding it, and it is not known whether it had started: the next worker notes
    -- the start first (tests/contract/test_started.py).
    suspect   boolean not null default false,
    -- That of the task; '' if it has none. In the order of its bytes, on every server.
    key       text collate "C" not null default ''
) with (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000);
comment on table nursery_queue.ready is 'Position of a task that may run now.';
-- The claim walks it. A task type before the priority: a worker steps over a million tasks of
-- types that it does not know in one probe.
create unique index ready_key
    on nursery_queue.ready (queue, task_type, priority desc, key, task_id);
-- Rows can be deleted also where all tables are published, as for logical replication.
alter table nursery_queue.ready replica identity using index ready_key;

create table nursery_queue.parked (like nursery_queue.ready);
comment on table nursery_queue.parked is
    'Position of a ready task of a type that no live worker knows: out of the way of claims.';
create unique index parked_key on nursery_queue.parked (task_type, queue, priority desc, task_id);
alter table nursery_queue.parked replica identity using index parked_key;

create table nursery_queue.running (
    task_id             bigint primary key,
    worker_id           uuid not null,
    attempt             integer not null,
    epoch               integer not null,
    lost                integer not null,
    started_at          timestamptz not null,
    -- The queue, if it has a limit: this row counts against it.
    pool                text,
    cancel_requested_at timestamptz,
    -- False: let the attempt finish, but make no other.
    cancel_interrupts   boolean not null default true,
    -- False: claimed ahead, and not known to have started. Only a started claim counts as lost.
    started             boolean not null default true,
    suspect             boolean not null default false, -- as in ready
    key                 text collate "C" not null default '' -- as in ready
) with (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000);
comment on table nursery_queue.running is 'Position of a claimed task.';
-- Every heartbeat reads it; nearly always empty.
create index running_cancel on nursery_queue.running (worker_id)
    where cancel_requested_at is not null;
create index running_pool on nursery_queue.running (pool, key) where pool is not null;

create table nursery_queue.finished (
    task_id       bigint primary key,
    state         text not null check (state in ('succeeded', 'failed', 'cancelled')),
    attempt       integer not null,
    epoch         integer not null,
    lost          integer not null,
    -- A role that may cancel can set a test's clock: not to an instant that no client can read.
    finished_at   timestamptz not null
                  check (finished_at between '0002-01-01 00:00+00' and '9998-12-31 00:00+00'),
    expires_at    timestamptz not null,
    result        jsonb,
    error_type    text,
    error_message text
);
comment on table nursery_queue.finished is 'How a task ended; leaves with its task row.';
create index finished_expires on nursery_queue.finished (expires_at);
-- Finds the few failed and cancelled tasks among many that succeeded.
create index finished_badly_key on nursery_queue.finished (state, task_id)
    where state <> 'succeeded';

create table nursery_queue.attempt (
    task_id         bigint not null,
    epoch           integer not null,
    outcome         text not null check (outcome in ('succeeded', 'failed', 'timed_out',
                    'cancelled', 'lost', 'interrupted', 'snoozed')),
    worker_id       uuid not null,
    started_at      timestamptz not null,
    finished_at     timestamptz not null,
    error_type      text,
    error_message   text,
    error_traceback text,
    error_details   jsonb,
    -- The task ended with it. Later attempts do not tell: the task may have been revived.
    final           boolean not null default false,
    -- Of a task with very many attempts, the oldest row that is kept counts the ones before it, by
    -- outcome and whether they were final: {"snoozed": 900, "failed final": 2}.
    earlier         jsonb,
    -- As it was registered; null: it was not any more when the attempt was closed.
    worker_name     text,
    primary key (task_id, epoch)
);
comment on table nursery_queue.attempt is
    'Closed attempts, inserted when they close; of a living task the newest hundred or two.';

create table nursery_queue.dedup (
    dedup_key text primary key,
    task_id   bigint not null,
    until     timestamptz, -- it is taken for so long also when the task has ended
    -- When to see whether it is taken still: the end of its task leaves a row that is locked.
    prune_at  timestamptz not null
);
comment on table nursery_queue.dedup is
    'Keys of live tasks, and of ended ones that are to stay taken for a while.';
create index dedup_task on nursery_queue.dedup (task_id);
create index dedup_prune on nursery_queue.dedup (prune_at);

create table nursery_queue.queue (
    name        text primary key check (name <> ''),
    constraint queue_name_of_at_most_255_characters check (length(name) <= 255),
    paused      boolean not null default false,
    max_running integer check (max_running >= 0),
    notify      boolean not null default true,
    -- Of its tasks with one key; without a key a task is not limited by it.
    max_running_per_key integer
                constraint queue_max_running_per_key_of_0_or_more check (max_running_per_key >= 0),
    -- `count` starts in `per` seconds, and `burst` of the next ones early. A burst that is left out
    -- is 0 (nursery_queue.change_alone). Constraints are checked in the order of their names: the
    -- first that does not hold is the one to tell (tests/pg/test_queue_columns.py).
    rate_count  integer constraint queue_rate_count_of_1_or_more check (rate_count >= 1),
    rate_per    double precision constraint queue_rate_per_above_0_and_at_most_100_years
                check (rate_per > 0 and rate_per <= 3155760000),
    rate_burst  integer constraint queue_rate_burst_of_0_or_more check (rate_burst >= 0),
    constraint queue_rate_has_both_count_and_per_or_nothing
        check (num_nulls(rate_count, rate_per, rate_burst) in (0, 3)),
    constraint queue_rate_up_to_a_million_starts_a_second
        check (rate_count <= rate_per * 1e6),
    -- Of the quiet time after which so many may start at once.
    constraint queue_rate_worth_of_burst_up_to_100_years
        check (rate_burst * rate_per <= 3155760000.0 * rate_count),
    -- The same for its tasks with one key.
    key_rate_count integer constraint queue_key_rate_count_of_1_or_more
                   check (key_rate_count >= 1),
    key_rate_per   double precision constraint queue_key_rate_per_above_0_and_at_most_100_years
                   check (key_rate_per > 0 and key_rate_per <= 3155760000),
    key_rate_burst integer constraint queue_key_rate_burst_of_0_or_more
                   check (key_rate_burst >= 0),
    constraint queue_key_rate_has_both_count_and_per_or_nothing
        check (num_nulls(key_rate_count, key_rate_per, key_rate_burst) in (0, 3)),
    constraint queue_key_rate_up_to_a_million_starts_a_second
        check (key_rate_count <= key_rate_per * 1e6),
    constraint queue_key_rate_worth_of_burst_up_to_100_years
        check (key_rate_burst * key_rate_per <= 3155760000.0 * key_rate_count),
    -- What code has declared of it, by the name of the column, when that was last stored here. A
    -- declaration that has not changed since leaves alone what was set at run time.
    declared    jsonb constraint queue_declared_as_an_object
                check (jsonb_typeof(declared) = 'object')
);
comment on table nursery_queue.queue is
    'Queues that are paused, limited in how many tasks run or start over all workers, declared in'
    ' code, or whose new tasks are left to the polls of the workers.';
create index queue_quiet on nursery_queue.queue (name) where not notify;

create table nursery_queue.worker (
    id           uuid primary key,
    name         text not null,
    host         text not null,
    pid          integer not null,
    queues       text[],
    task_types   text[] not null,
    lease        double precision not null check (lease > 0 and lease <= 3155760000),
    started_at   timestamptz not null,
    heartbeat_at timestamptz not null,
    draining     boolean not null default false,
    -- How many losses its task types allow, by name, where its code says so.
    max_lost     jsonb not null default '{}',
    -- Its lease has run out and others take its tasks: it can renew no more.
    dead         boolean not null default false,
    -- Seconds from one heartbeat to the next.
    heartbeat    double precision not null default 3
                 check (heartbeat > 0 and heartbeat <= 3155760000),
    -- The name of its App, and the schedules that this declares.
    app          text not null default 'main',
    schedules    text[] not null default '{}'
);
comment on table nursery_queue.worker is
    'One row for each live worker; its lease runs from heartbeat_at.';
