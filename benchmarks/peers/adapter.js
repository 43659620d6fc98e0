// What the adapters of libraries for Node.js share; the other side is nursery_queue.cli._measuring.
//
// An adapter is a process with one job, which is the first line on stdin: an object of JSON, as all
// lines are. It answers {"ready": true} as soon as it could begin, begins when it hears
// {"do": "go"}, says {"done": n} on the way, and at last {"result": {...}}. It ends with its stdin.
//
// `open(job)` returns what a library can do: install(), work(handle), enqueue(i), enqueueMany(n).

const readline = require("node:readline");
const { setTimeout: sleep } = require("node:timers/promises");

const BACKLOG_REPORTS = 10, IDLE_REPORTS = 250; // milliseconds, as those of our own worker
const SETTLE = 2000; // milliseconds until an idle worker listens: libraries do not tell

const lines = readline.createInterface({ input: process.stdin })[Symbol.asyncIterator]();
const say = (message) => process.stdout.write(JSON.stringify(message) + "\n");
const now = () => Number(process.hrtime.bigint()); // the clock that all processes share

async function hear() {
  const { value, done } = await lines.next();
  if (done) process.exit(0);
  return JSON.parse(value);
}

function cpu() {
  const { user, system } = process.cpuUsage();
  return (user + system) / 1e6;
}

async function ready() {
  say({ ready: true });
  await hear();
  return cpu();
}

const finish = (before, result) => say({ result: { ...result, cpu: cpu() - before } });

async function install(peer) {
  const before = await ready();
  await peer.install();
  finish(before, {});
}

async function work(peer, job) {
  const started = new Map(), pause = 1000 * job.sleep;
  const note = (i) => void started.set(i, now());
  const noteAndWait = (i) => (note(i), sleep(pause));
  const begin = () => peer.work(pause ? noteAndWait : note);
  if (!job.backlog) {
    await begin();
    await sleep(SETTLE);
  }
  const before = await ready();
  if (job.backlog) await begin();
  let told = 0;
  const reporting = setInterval(() => {
    if (started.size > told) say({ done: (told = started.size) });
  }, job.backlog ? BACKLOG_REPORTS : IDLE_REPORTS);
  await hear();
  clearInterval(reporting);
  const [first = null] = started.values();
  finish(before, { first, started: job.backlog ? [] : [...started] });
}

async function enqueue(peer, job) {
  for (let i = -job.warm_up; i < 0; i++) await peer.enqueue(i);
  const before = await ready(), begun = now();
  let tasks = 0;
  if (job.way === "one") for (; now() - begun < job.seconds * 1e9; tasks++) await peer.enqueue(tasks);
  else await peer.enqueueMany((tasks = job.tasks));
  finish(before, { begun, ended: now(), tasks });
}

async function enqueueSlowly(peer, job) {
  const called = [], returned = [];
  for (let i = -job.warm_up; i < 0; i++) await peer.enqueue(i);
  const before = await ready();
  let due = now();
  for (let i = 0; i < job.tasks; i++) {
    await sleep(Math.max(0, (due - now()) / 1e6));
    due = now() + job.gap * 1e9;
    called.push(now());
    await peer.enqueue(i);
    returned.push(now());
  }
  finish(before, { called, returned });
}

const ROLES = { install, work, enqueue, enqueue_slowly: enqueueSlowly };

exports.serve = async (open) => {
  try {
    const job = await hear();
    await ROLES[job.role](await open(job), job);
    await hear(); // connected until then, so that the parent can count what it used
  } catch (error) {
    say({ error: String(error) });
    process.exit(1);
  }
};
