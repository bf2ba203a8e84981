// Rates: what counters have gained between two answers, kept for a few minutes.

/** Answers that are kept per figure: two minutes at one every two seconds. */
export const PLACES = 60;

/** Counters of the services by name, and of all together. */
export class History {
  #last = null;
  #courses = new Map();

  /** Takes one answer of the daemon. */
  take(status) {
    const last = this.#last;
    // It has been started anew: its counters began at nothing.
    if (last && status.uptime_seconds < last.uptimeSeconds) this.#courses.clear();
    const counters = new Map(status.services.map((service) => [service.name, countersOf(service)]));
    const passedS = last && status.uptime_seconds >= last.uptimeSeconds ? (status.unix_ms - last.unixMs) / 1000 : 0;
    this.#last = { unixMs: status.unix_ms, uptimeSeconds: status.uptime_seconds, counters };
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
  }

  /** Per second: `{ opened: [...], bytes: [...], requests: [...] }`, oldest first; "" is all services together. */
  of(name) {
    return this.#courses.get(name) ?? { opened: [], bytes: [], requests: [] };
  }

  #add(name, gained) {
    const course = this.#courses.get(name) ?? { opened: [], bytes: [], requests: [] };
    for (const [figure, values] of Object.entries(course)) {
      values.push(gained[figure]);
      if (values.length > PLACES) values.shift();
    }
    this.#courses.set(name, course);
  }
}

function countersOf(service) {
  return {
    opened: service.accepted,
    bytes: service.bytes_from_client + service.bytes_to_client,
    requests: service.counters.requests ?? 0,
  };
}
