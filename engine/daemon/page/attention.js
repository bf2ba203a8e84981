// What somebody should look at, the worst first. Pure.

import { certificateName, certificateState, counted, isSorry, lastReload, limitName, limitState, orders, percent, ports, serverState, socket, standing, takenOverWords, thousands } from "./words.js";

/** So many are listed; the rest is counted. */
export const LISTED_MAX = 12;

const GRAVITY = { bad: 0, warn: 1, calm: 2 };

/** `[{ tone, shape, word, whom, why }]`; `limits` and `certificates` as the daemon lists them. */
export function attention({ status, limits, certificates, nowMs, passedMs }) {
  const found = [];
  const note = (state, whom, why) => found.push({ ...state, whom, why });
  if (status.phase !== "running") {
    note({ word: status.phase, tone: "warn", shape: "warning" }, "Towpath", "it is being stopped and takes no orders any more");
  }
  if (status.role === "standby") {
    note({ word: "standby", tone: "calm", shape: "standby" }, "Towpath", "another machine has the addresses; this one waits");
  }
  const reload = lastReload(status.events);
  if (reload?.refused) note({ word: "refused", tone: "warn", shape: "warning" }, "last reload", `${reload.words}; \`towpath reload\` tells the reasons`);
  // What finishes there still counts on the machine, and on the servers.
  if (status.taken_over && status.taken_over.finishing !== null) {
    note({ word: "taken over", tone: "calm", shape: "standby" }, "Towpath", takenOverWords(status.taken_over, nowMs));
  }
  for (const service of status.services) {
    if (service.state === "down") {
      note({ word: "down", tone: "bad", shape: "down" }, service.name, "no server takes new clients");
    }
    for (const server of service.servers) {
      const state = serverState(server);
      const whom = `${server.name} of ${service.name}`;
      if (server.admin !== "ready") note(state, whom, server.admin_said ? orders(server, nowMs, passedMs)[0] : `${server.admin}, as configured`);
      else if (state.tone !== "good" && state.tone !== "calm") note(state, whom, standing(server));
      else if ((server.closed_ports ?? []).length > 0) {
        note({ word: "degraded", tone: "warn", shape: "degraded" }, whom, `not up: ${ports(server.closed_ports)}`);
      }
    }
    const { queue } = service;
    if (queue && queue.waiting > 0) {
      note({ word: "queue", tone: "warn", shape: "warning" }, service.name, `${thousands(queue.waiting)} of ${thousands(queue.max)} clients wait for a place`);
    }
  }
  for (const row of certificates) {
    const state = certificateState(row);
    const whom = `${certificateName(row)} of ${row.service ?? "this page"}`;
    if (state.tone !== "good") note({ ...state, word: row.kind }, whom, state.word);
  }
  for (const limit of limits) {
    const state = limitState(limit);
    if (state.tone !== "good") note(state, limitName(limit), `${percent(limit.used, limit.max)} used; ${limit.remedy}`);
  }
  for (const worker of status.workers) {
    if (worker.state !== "serving") note({ word: worker.state, tone: "bad", shape: "down" }, `worker ${worker.id}`, "it does not serve any more");
  }
  if (status.access_log?.trouble) note({ word: "access log", tone: "warn", shape: "warning" }, "access log", status.access_log.trouble);
  for (const receiver of status.notify) {
    if (receiver.trouble) note({ word: "notify", tone: "warn", shape: "warning" }, receiver.receiver, receiver.trouble);
  }
  return found.map((item, at) => ({ ...item, at })).sort((a, b) => GRAVITY[a.tone] - GRAVITY[b.tone] || a.at - b.at);
}

/** How many things are how: "2 up, 1 down" as parts, the worst first. */
export function tally(states) {
  const counts = new Map();
  for (const state of states) {
    const entry = counts.get(state.word) ?? { state, count: 0 };
    entry.count += 1;
    counts.set(state.word, entry);
  }
  const gravity = (state) => GRAVITY[state.tone] ?? 3;
  return [...counts.values()]
    .sort((a, b) => gravity(a.state) - gravity(b.state))
    .map(({ state, count }) => ({ ...state, word: `${thousands(count)} ${state.word}` }));
}

/** Each server once, however many services it is in. */
export function serversOf(status) {
  const servers = new Map();
  for (const server of status.services.flatMap((service) => service.servers.filter((each) => !isSorry(each)))) {
    const name = socket(server.address, server.port);
    const known = servers.get(name);
    // Where it is judged differently, the graver word counts.
    const worse = !known || (GRAVITY[serverState(server).tone] ?? 3) < (GRAVITY[serverState(known).tone] ?? 3);
    if (worse) servers.set(name, server);
  }
  return [...servers.values()];
}

/** "3 of 4 servers take new clients" */
export function takersWords(takers, all) {
  if (takers === 0) return "no server takes new clients";
  return takers === all ? `all ${counted(all, "server")} take new clients` : `${takers} of ${counted(all, "server")} take${takers === 1 ? "s" : ""} new clients`;
}
