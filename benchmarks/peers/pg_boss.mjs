// One measurement of pg-boss: enqueue a workflow of no-op jobs and run it, after a small run of the same kind.
//
//     node pg_boss.mjs FOLDER < order.json
//
// FOLDER: where pg-boss is installed. The order: {connection, small, edges, way, loops, batch, wake}; `small` and `edges` are the
// dependencies of each job as positions, of the run before and of the one that is measured. Answers {version, enqueue_s, drain_s}.
//
// way "calls": loops of fetch and complete. way "worker": work() with a handler for each job.
// pg-boss releases dependents in the background, every second at most. Here its resolveFlow() is called by hand: by a loop that finds
// nothing (calls), or by one of its own (worker).
import { readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { pathToFileURL } from 'node:url'

const load = createRequire(pathToFileURL(process.argv[2] + '/'))
const { PgBoss } = await import(pathToFileURL(load.resolve('pg-boss')))
const order = JSON.parse(readFileSync(0, 'utf8'))
const queue = 'bench'
const shortWait = () => new Promise(resolve => setTimeout(resolve, 1))

// (Without its maintenance, which would take a part of the machine.)
const boss = new PgBoss({ ...order.connection, max: Math.min(order.loops + 2, 60), supervise: false, schedule: false })
boss.on('error', error => { console.error(error); process.exit(1) })

let resolved = 0
let pass = null
boss.on('flow', event => { resolved += event.resolved })

// Release what can be released; a pass at a time, which all who ask wait for. Whether it found anything.
function release () {
  pass ??= (async () => {
    const before = resolved
    await boss.resolveFlow()
    pass = null
    return resolved > before
  })()
  return pass
}

const hasEdges = edges => edges.some(on => on.length)

// The seconds to enqueue it in one call.
async function enqueue (edges) {
  const flow = hasEdges(edges)
  const jobs = edges.map((on, i) => flow ? { ref: String(i), name: queue, data: {}, dependsOn: on.map(String) } : { data: {} })
  const began = performance.now()
  if (flow) await boss.flow(jobs)
  else await boss.insert(queue, jobs)
  return (performance.now() - began) / 1000
}

// Run all by fetch and complete alone.
async function drainByCalls (edges) {
  const flow = hasEdges(edges)
  let left = edges.length
  async function loop () {
    while (left > 0) {
      const got = await boss.fetch(queue, { batchSize: order.batch })
      if (got.length) {
        await boss.complete(queue, got.map(job => job.id))
        left -= got.length
      }
      // (Where one loop is all there is, nothing can be ready before the next pass.)
      if (flow && left > 0 && (!got.length || (order.loops === 1 && got.length < order.batch))) {
        if (!await release() && !got.length) await shortWait()
      } else if (!got.length) await shortWait()
    }
  }
  await Promise.all(Array.from({ length: order.loops }, loop))
}

let left = 0
let whenOver = () => {}
const workers = []
const wakeAll = () => workers.forEach(id => boss.notifyWorker(id))

// Start the loops; each polls twice a second, its fastest, and goes on at once after a full batch. With `wake` none waits
// for its next poll: it is told to look again when it has run something, and when something was released.
async function startWorker () {
  const options = { batchSize: order.batch, pollingIntervalSeconds: 0.5, burstWhenBatchFull: true }
  const nothing = async () => {}
  for (let i = 0; i < order.loops; i++) {
    workers.push(await boss.work(queue, options, async jobs => {
      for (const job of jobs) await nothing(job)
      if (order.wake) boss.notifyWorker(workers[i])
      left -= jobs.length
      if (left === 0) whenOver()
    }))
  }
}

// Wait until the worker has run all, and all is written.
async function drainByWorker (edges, over) {
  if (order.wake) wakeAll()
  if (hasEdges(edges)) {
    while (left > 0) {
      if (!await release()) await shortWait()
      else if (order.wake) wakeAll()
    }
  }
  await over
  const open = "select exists (select from pgboss.job where name = 'bench' and state < 'completed') as open"
  while ((await boss.getDb().executeSql(open)).rows[0].open) await shortWait()
}

async function run (edges) {
  left = edges.length
  const over = new Promise(resolve => { whenOver = resolve })
  const enqueued = await enqueue(edges)
  // (Neither side is to suffer from statistics of an empty table.)
  if (order.way === 'calls') await boss.getDb().executeSql('analyze')
  const began = performance.now()
  await (order.way === 'calls' ? drainByCalls(edges) : drainByWorker(edges, over))
  return { enqueue_s: enqueued, drain_s: (performance.now() - began) / 1000 }
}

await boss.start()
await boss.createQueue(queue)
if (order.way === 'worker') await startWorker()
await run(order.small)
await boss.getDb().executeSql('analyze')
const figures = await run(order.edges)
console.log(JSON.stringify({ version: load('pg-boss/package.json').version, ...figures }))
process.exit(0)
