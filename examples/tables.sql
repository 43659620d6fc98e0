-- The tables of the applications here. Those of the queue are made by `nursery-queue migrate up`.

-- For the sign-ups. `guests`: how many have named this person as the one who invited them.
create table if not exists person (
    email  text primary key,
    guests integer not null default 0
);

-- For push_batches.py: what is changed, and which mutation of each client was the last one.
create table if not exists issue (
    id    integer primary key,
    title text not null,
    open  boolean not null default true
);

create table if not exists push_client (
    id            text primary key,
    last_mutation bigint not null
);
