// Graphile Worker. Batched: its local queue, and completions together, as its own performance test.

const { Logger, makeWorkerUtils, run } = require("graphile-worker");
const { serve } = require("./adapter.js");

const logger = new Logger(() => () => {});
const BATCHED = {
  localQueue: { size: 500, refetchDelay: { durationMs: 10 } },
  completeJobBatchDelay: 0,
  failJobBatchDelay: 0,
};

serve(async ({ dsn, role, concurrency, batched }) => {
  const worker = { connectionString: dsn, concurrentJobs: concurrency, logger };
  if (role === "work") {
    const preset = { worker: { ...worker, maxPoolSize: concurrency + 1, ...(batched && BATCHED) } };
    const taskList = (handle) => ({ note: ({ i }) => handle(i) });
    return { work: (handle) => run({ preset, noHandleSignals: true, taskList: taskList(handle) }) };
  }
  const utils = await makeWorkerUtils({ connectionString: dsn, logger });
  const job = (_, i) => ({ identifier: "note", payload: { i } });
  return {
    install: () => utils.migrate(),
    enqueue: (i) => utils.addJob("note", { i }),
    enqueueMany: (count) => utils.addJobs(Array.from({ length: count }, job)),
  };
});
