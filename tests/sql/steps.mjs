// Carries out one step with the functions of examples/node_signup; prints what came of it as
// JSON. Usage: node steps.mjs STEP [ARGUMENT]

import pg from "pg";

import { cancel, enqueue, signUp, status, transaction } from "./signup.mjs";

const ANN = "ann@example.org";
const pool = new pg.Pool({ connectionString: process.env.DATABASE_URL, max: 1 });

async function caught(work) {
  try {
    return { value: await work() };
  } catch (error) {
    return { error: error.message, code: error.code, constraint: error.constraint };
  }
}

const steps = {
  commit: () => transaction(pool, (client) => signUp(client, ANN)),

  rollback: () =>
    caught(() =>
      transaction(pool, async (client) => {
        await signUp(client, ANN);
        throw new Error("changed my mind");
      }),
    ),

  // The connection goes away in the midst of the transaction.
  async hangUp() {
    const client = await pool.connect();
    client.on("error", () => {});
    await client.query("begin");
    const ref = await signUp(client, ANN);
    client.release(true);
    return ref;
  },

  // The second enqueue finds the first one's task; the transaction goes on.
  dedup: () =>
    transaction(pool, async (client) => {
      const first = await enqueue(client, "SEND_EMAIL_WELCOME", { email: ANN }, { dedup_key: "a" });
      const second = await enqueue(client, "SEND_EMAIL_WELCOME", {}, { dedup_key: "a" });
      await client.query("insert into usr (email) values ($1)", [ANN]);
      return [first, second];
    }),

  // A refused task aborts the transaction, as any failing statement does; the pool is usable.
  async refused() {
    const refused = await caught(() =>
      transaction(pool, async (client) => {
        await client.query("insert into usr (email) values ($1)", [ANN]);
        await enqueue(client, "SEND_EMAIL_WELCOME", [ANN]); // params are not an object
      }),
    );
    return { ...refused, usable: (await pool.query("select 1 as one")).rows };
  },

  later: () =>
    enqueue(pool, "SEND_EMAIL_WELCOME", { email: ANN }, {
      run_at: new Date(Date.now() + 3_600_000),
      priority: 7,
      queue: "mail",
    }),

  wrongOption: () => caught(() => enqueue(pool, "SEND_EMAIL_WELCOME", {}, { "x); --": 1 })),

  cancel: (id) => cancel(pool, id),

  status: async (id) => (await status(pool, id)) ?? null,
};

const [step, argument] = process.argv.slice(2);
try {
  console.log(JSON.stringify(await steps[step](argument)));
} finally {
  await pool.end();
}
