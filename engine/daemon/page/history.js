// Rates, loads and courses: what counters have gained between two answers, kept for a few minutes.

import { socket } from "./words.js";

/** Answers that are kept per figure: two minutes at one every two seconds. */
export const PLACES = 60;
/** Latencies are those of the last one or two such spans: fewer would be those of nobody in the night. */
const LATENCY_MS = 60_000;

/** Counters of services by name and of all together, of servers by their address, and of workers. */
export class History {
  #last = null;
  #courses = new Map();
  /** Connections of each server, over all services. */
  #servers = new Map();
  #loads = new Map();
  /** Latencies of two earlier answers, the older one first. */
  #earlier = [];
  #latencies = new Map();

  /** Takes one answer of the daemon. */
  take(status) {
    const last = this.#last;
    // It has been started anew: its counters began at nothing.
    if (last && status.uptime_seconds < last.uptimeSeconds) this.#forget();
    const counters = new Map(status.services.map((service) => [service.name, countersOf(service)]));
    const busyUs = new Map(status.workers.map((worker) => [worker.id, worker.counters.busy_microseconds ?? 0]));
    const passedS = last && status.uptime_seconds >= last.uptimeSeconds ? (status.unix_ms - last.unixMs) / 1000 : 0;
    this.#last = { unixMs: status.unix_ms, uptimeSeconds: status.uptime_seconds, counters, busyUs };
    this.#takeServers(status);
    this.#takeLatencies(status);
    for (const name of this.#courses.keys()) {
      if (name !== "" && !counters.has(name)) this.#courses.delete(name);
    }
    if (passedS <= 0) return;
    const all = { opened: 0, bytes: 0, requests: 0 };
    for (const [name, now] of counters) {
      const before = last.counters.get(name);
      if (!before) continue;
      const gained = {};
      for (const figure of Object.keys(all)) {
        // A counter that went back belongs to another service of that name.
        gained[figure] = Math.max(0, now[figure] - before[figure]) / passedS;
        all[figure] += gained[figure];
      }
      this.#add(name, gained);
    }
    this.#add("", all);
    for (const [id, now] of busyUs) {
      const before = last.busyUs.get(id);
      if (before !== undefined) push(this.#loads, id, Math.min(1, Math.max(0, now - before) / (passedS * 1e6)));
    }
  }

  /** Per second: `{ opened: [...], bytes: [...], requests: [...] }`, oldest first; "" is all services together. */
  of(name) {
    return this.#courses.get(name) ?? { opened: [], bytes: [], requests: [] };
  }

  /** Connections that a server had, oldest first. */
  ofServer(server) {
    return this.#servers.get(socket(server.address, server.port)) ?? [];
  }

  /** Which share of its time a worker had something to do, from 0 to 1, oldest first. */
  ofWorker(id) {
    return this.#loads.get(id) ?? [];
  }

  /** How long things took lately, by service: `{ connect: { count, p50Us, p99Us } }`; nothing before the second answer. */
  lately(service) {
    return this.#latencies.get(service) ?? {};
  }

  #forget() {
    for (const kept of [this.#courses, this.#servers, this.#loads, this.#latencies]) kept.clear();
    this.#earlier = [];
  }

  #takeServers({ services }) {
    const seen = new Set();
    for (const server of services.flatMap((service) => service.servers)) {
      const name = socket(server.address, server.port);
      // In several services it is told of several times.
      if (seen.has(name)) continue;
      seen.add(name);
      push(this.#servers, name, server.connections);
    }
    for (const name of this.#servers.keys()) {
      if (!seen.has(name)) this.#servers.delete(name);
    }
  }

  #takeLatencies({ services, unix_ms, latency_bounds_us }) {
    const now = new Map(services.map((service) => [service.name, service.latencies ?? {}]));
    const before = this.#earlier[0]?.of;
    this.#latencies.clear();
    for (const [service, latencies] of before ? now : []) {
      const was = before.get(service) ?? {};
      const gained = ([what, latency]) => [what, since(latency, was[what], latency_bounds_us)];
      this.#latencies.set(service, Object.fromEntries(Object.entries(latencies).map(gained)));
    }
    if (this.#earlier.length === 0 || unix_ms - this.#earlier.at(-1).unixMs >= LATENCY_MS) this.#earlier.push({ unixMs: unix_ms, of: now });
    if (this.#earlier.length > 2) this.#earlier.shift();
  }

  #add(name, gained) {
    const course = this.#courses.get(name) ?? { opened: [], bytes: [], requests: [] };
    for (const [figure, values] of Object.entries(course)) keep(values, gained[figure]);
    this.#courses.set(name, course);
  }
}

function push(courses, name, value) {
  const values = courses.get(name) ?? [];
  keep(values, value);
  courses.set(name, values);
}

function keep(values, value) {
  values.push(value);
  if (values.length > PLACES) values.shift();
}

/** What a latency has gained since an earlier answer; all of it where there was none, or another service of that name. */
function since(now, before, boundsUs) {
  const gained = before && now.count >= before.count ? now.buckets.map((count, at) => Math.max(0, count - before.buckets[at])) : now.buckets;
  const count = gained.reduce((sum, each) => sum + each, 0);
  return { count, p50Us: percentile(gained, count, 0.5, boundsUs), p99Us: percentile(gained, count, 0.99, boundsUs) };
}

/** The end of the range that the percentile is in, as the daemon tells it; beyond the last one its beginning. */
function percentile(counts, count, share, boundsUs) {
  if (count === 0) return null;
  const rank = Math.ceil(count * share);
  let sum = 0;
  const at = counts.findIndex((each) => (sum += each) >= rank);
  return boundsUs[Math.min(at, boundsUs.length - 1)];
}

function countersOf(service) {
  return {
    opened: service.accepted,
    bytes: service.bytes_from_client + service.bytes_to_client,
    requests: service.counters.requests ?? 0,
  };
}
