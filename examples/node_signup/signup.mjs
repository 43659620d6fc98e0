// Signs a user up from Node.js: the user and the task of sending the welcome mail are stored
// in one transaction. The handler is Python, in a worker, anywhere.
//
//     npm install
//     DATABASE_URL=postgresql://... node signup.mjs ann@example.org
//
// Needs the tables of the queue, and: create table usr (email text primary key)

import { realpathSync } from "node:fs";
import { fileURLToPath } from "node:url";

import pg from "pg";

// Runs work(client) in a transaction, which is rolled back if that throws.
export async function transaction(pool, work) {
  const client = await pool.connect();
  let broken;
  try {
    await client.query("begin");
    const done = await work(client);
    await client.query("commit");
    return done;
  } catch (error) {
    await client.query("rollback").catch((why) => (broken = why));
    throw error;
  } finally {
    client.release(broken); // one that could not roll back is closed
  }
}

// Options are those of the SQL function nursery_queue.enqueue, for instance { dedup_key: "ann" }.
// An id is a string: it may be larger than what a number can hold.
export async function enqueue(client, taskType, params = {}, options = {}) {
  const names = Object.keys(options);
  for (const name of names) {
    if (!/^[a-z_]+$/.test(name)) throw new TypeError(`not an option: ${name}`);
  }
  const named = names.map((name, i) => `, ${name} => $${i + 3}`).join("");
  const answer = await client.query(
    `select id, created from nursery_queue.enqueue($1, $2${named})`,
    [taskType, JSON.stringify(params), ...Object.values(options)],
  );
  return answer.rows[0];
}

export async function cancel(client, id) {
  const answer = await client.query("select nursery_queue.cancel($1) as done", [id]);
  return answer.rows[0].done;
}

// Where the task is, or undefined if there is none (any more).
export async function status(client, id) {
  const answer = await client.query(
    `select state, attempt, result, error_type, error_message
       from nursery_queue.task_status where id = $1`,
    [id],
  );
  return answer.rows[0];
}

export async function signUp(client, email) {
  await client.query("insert into usr (email) values ($1)", [email]);
  return await enqueue(client, "SEND_EMAIL_WELCOME", { email });
}

if (realpathSync(process.argv[1]) === fileURLToPath(import.meta.url)) {
  const pool = new pg.Pool({ connectionString: process.env.DATABASE_URL });
  try {
    const { id } = await transaction(pool, (client) => signUp(client, process.argv[2]));
    console.log(`task ${id}`);
  } finally {
    await pool.end();
  }
}
