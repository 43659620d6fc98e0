// pg-boss. Batches keep a worker of it busy; NOTIFY wakes it, else it would poll.

const { PgBoss } = require("pg-boss");
const { serve } = require("./adapter.js");

const MANY = 10_000; // jobs of one insert
const SQL = "insert into effect (i) values ($1)";

serve(async ({ dsn, role, concurrency, batch, transactional }) => {
  const working = role === "work";
  const boss = new PgBoss({
    connectionString: dsn,
    max: 20,
    supervise: working,
    schedule: false,
    useListenNotify: working,
  });
  boss.on("error", (error) => console.error(error));
  await boss.start();
  const options = {
    batchSize: batch,
    localConcurrency: concurrency,
    burstWhenBatchFull: batch > 1,
    pollingIntervalSeconds: 0.5,
    ...(transactional && { transactional }),
  };
  const all = (handle) => (jobs) => Promise.all(jobs.map(({ data }) => handle(data.i)));
  const inserting = (handle) => async (jobs, db) => {
    for (const { data } of jobs) {
      handle(data.i);
      await db.executeSql(SQL, [data.i]);
    }
  };
  return {
    install: () => boss.createQueue("note", { notify: true }),
    work: (handle) => boss.work("note", options, (transactional ? inserting : all)(handle)),
    enqueue: (i) => boss.send("note", { i }),
    enqueueMany: async (count) => {
      for (let next = 0; next < count; next += MANY) {
        const length = Math.min(MANY, count - next);
        await boss.insert("note", Array.from({ length }, (_, k) => ({ data: { i: next + k } })));
      }
    },
  };
});
