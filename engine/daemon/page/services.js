// The table of services, and below each its servers.

import { badge, element, following, say, set, sparkline } from "./dom.js";
import { PLACES } from "./history.js";
import { bytes, counted, countdown, healthState, orders, ports, rate, serverState, serviceState, socket, span, standing, thousands } from "./words.js";

/** With so few services all of them are open until somebody closes them. */
const OPEN_MAX = 4;

export class Services {
  #act;
  #follow;
  /** What somebody has opened or closed, by the name of the service. */
  #chosen = new Map();
  #context = null;

  /** `act(verb, service, server, from)` when somebody presses a button. */
  constructor(act) {
    this.#act = act;
    this.#follow = following(document.querySelector("#service-rows"), (service) => service.name, () => this.#row());
    document.querySelector("#filter").addEventListener("input", () => this.#render());
    document.querySelector("#troubled").addEventListener("change", () => this.#render());
  }

  /** `context`: `{ status, history, nowMs, passedMs, may }`. */
  update(context) {
    this.#context = context;
    this.#render();
  }

  #render() {
    if (!this.#context) return;
    const { services } = this.#context.status;
    const wanted = document.querySelector("#filter").value.trim().toLowerCase();
    const troubled = document.querySelector("#troubled").checked;
    const shown = services.filter((service) => matches(service, wanted) && (!troubled || isTroubled(service)));
    this.#follow(shown);
    set(document.querySelector("#no-services"), "hidden", services.length > 0);
    set(document.querySelector("#none-match"), "hidden", services.length === 0 || shown.length > 0);
    set(document.querySelector("#service-table"), "hidden", shown.length === 0);
  }

  #isOpen(service) {
    const few = this.#context.status.services.length <= OPEN_MAX;
    return this.#chosen.get(service.name) ?? (few || isTroubled(service));
  }

  #row() {
    let service;
    const open = element("button", {
      type: "button",
      class: "open",
      onclick: () => {
        this.#chosen.set(service.name, !this.#isOpen(service));
        this.#render();
      },
    });
    const cell = (label, ...children) => element("td", { role: "cell", "data-label": label }, ...children);
    const state = badge();
    const [vip, portsCell, protocol, method, mode] = ["VIP", "Ports", "Protocol", "Method", "Mode"].map((label) => cell(label));
    const connections = element("td", { role: "cell", "data-label": "Connections", class: "figure" });
    const opened = course();
    const traffic = course();
    const row = element(
      "tr",
      { role: "row", class: "service" },
      element("th", { role: "rowheader", scope: "row" }, open),
      cell("State", state.node),
      vip,
      portsCell,
      connections,
      protocol,
      method,
      mode,
      cell("New connections", opened.node),
      cell("Throughput", traffic.node),
    );
    const list = element("ul", { role: "list" });
    const more = element("p", { class: "more" });
    const members = element("tr", { role: "row", class: "members" }, element("td", { role: "cell", colspan: 10 }, list, more));
    const follow = following(list, (server) => `${server.name} ${socket(server.address, server.port)}`, () => this.#member());
    return {
      nodes: [row, members],
      update: (next) => {
        service = next;
        const { history } = this.#context;
        const isOpen = this.#isOpen(service);
        say(open, service.name);
        set(open, "aria-expanded", isOpen ? "true" : "false");
        set(row, "class", isOpen ? "service is-open" : "service");
        state.update(serviceState(service));
        say(vip, service.vip);
        say(portsCell, ports(service.ports));
        const max = service.connections_max > 0 ? ` of ${thousands(service.connections_max)}` : "";
        say(connections, `${thousands(service.connections)}${max}`);
        say(protocol, service.protocol.toUpperCase());
        say(method, service.balance);
        say(mode, service.mode || service.plane);
        const courses = history.of(service.name);
        opened.update(courses.opened, (value) => `${rate(value)}/s`);
        traffic.update(courses.bytes, (value) => `${bytes(value)}/s`);
        set(members, "hidden", !isOpen);
        if (!isOpen) return;
        follow(service.servers.map((server) => ({ ...server, service: service.name })));
        say(more, details(service, history).join(" · "));
      },
    };
  }

  #member() {
    let server;
    const state = badge();
    const health = badge("lamp");
    const name = element("span", { class: "name" });
    const address = element("span", { class: "quiet" });
    const why = element("div");
    const since = element("div", { class: "quiet figures" });
    const said = element("div", { class: "said" });
    const clock = element("span", { class: "figures", role: "timer" });
    const load = element("div", { class: "figures" });
    const weight = element("div", { class: "quiet figures" });
    const acts = element("div", { class: "acts" });
    const button = (verb, label) =>
      element("button", { type: "button", "data-verb": verb, onclick: () => this.#act(verb, server) }, label);
    const buttons = {
      ready: button("ready", "Ready"),
      drain: button("drain", "Drain"),
      "drain-by": button("drain-by", "Drain by…"),
      halt: button("halt", "Halt…"),
      weight: button("weight", "Weight…"),
      check: button("check", "Check"),
    };
    acts.append(...Object.values(buttons));
    const node = element(
      "li",
      { class: "member" },
      element("div", { class: "stack state" }, state.node, health.node),
      element("div", { class: "stack who" }, name, address),
      element("div", { class: "why" }, why, said, clock, since),
      element("div", { class: "load" }, load, weight),
      acts,
    );
    return {
      nodes: [node],
      update: (next) => {
        server = next;
        const { nowMs, passedMs, may, stale } = this.#context;
        set(node, "data-server", `${server.service}/${server.name}`);
        const lead = serverState(server);
        state.update(lead);
        const own = healthState(server.health);
        health.update(own);
        // The operator's word leads; what its check says stands below.
        set(health.node, "hidden", lead.word === own.word);
        say(name, server.name);
        say(address, socket(server.address, server.port));
        say(why, standing(server));
        const ms = server.health_seconds * 1000 + passedMs;
        say(since, `${own.word} for ${span(ms)}`);
        say(said, orders(server, nowMs, passedMs).join("; "));
        const left = deadline(server, passedMs);
        set(clock, "hidden", left === null);
        say(clock, left === null ? "" : `${countdown(left)} left`);
        const max = server.connections_max > 0 ? ` of ${thousands(server.connections_max)}` : "";
        say(load, `${counted(server.connections, "connection")}${max}`);
        say(weight, `weight ${thousands(server.weight)} · ${thousands(server.opened)} opened`);
        set(acts, "hidden", !may);
        set(buttons.ready, "hidden", server.admin === "ready");
        set(buttons.drain, "hidden", server.admin !== "ready");
        set(buttons.halt, "hidden", server.admin === "halt");
        for (const [verb, each] of Object.entries(buttons)) {
          each.disabled = stale;
          const words = { "drain-by": "Drain by a deadline" };
          set(each, "aria-label", `${words[verb] ?? verb[0].toUpperCase() + verb.slice(1)}: ${server.name} of ${server.service}`);
        }
      },
    };
  }
}

/** Milliseconds until the drain of a server is over whatever is left; null without such a limit. */
function deadline(server, passedMs) {
  const drain = server.admin_said?.drain;
  return drain && !drain.over && drain.deadline_in_ms !== null ? drain.deadline_in_ms - passedMs : null;
}

/** A figure with its course over the last minutes. */
function course() {
  const figure = element("span", { class: "figures" });
  const line = sparkline();
  return {
    node: element("div", { class: "course" }, figure, line.node),
    update(values, words) {
      say(figure, values.length > 0 ? words(values.at(-1)) : "–");
      line.update(values, PLACES);
    },
  };
}

function isTroubled(service) {
  return service.state !== "up" || service.servers.some((server) => server.admin !== "ready" || server.health !== "up");
}

function matches(service, wanted) {
  if (wanted === "") return true;
  const names = [service.name, service.vip, ...service.servers.flatMap((server) => [server.name, socket(server.address, server.port)])];
  return names.some((name) => name.toLowerCase().includes(wanted));
}

/** What else is known of a service, in one line. */
function details(service, history) {
  const parts = [`${thousands(service.accepted)} accepted`, `${thousands(service.opened)} opened`];
  parts.push(`${bytes(service.bytes_from_client)} from clients`, `${bytes(service.bytes_to_client)} to clients`);
  if (service.persistence_ms !== null) parts.push(`clients return for ${span(service.persistence_ms)}`);
  const requests = history.of(service.name).requests.at(-1) ?? 0;
  if ((service.counters.requests ?? 0) > 0) parts.push(`${thousands(service.counters.requests)} requests (${rate(requests)}/s)`);
  if (service.queue) {
    const longest = service.queue.waiting > 0 ? `, the first for ${span(service.queue.longest_ms)}` : "";
    parts.push(`${thousands(service.queue.waiting)} of ${thousands(service.queue.max)} wait${longest}`);
  }
  for (const [what, latency] of Object.entries(service.latencies ?? {})) {
    if (latency.count > 0) parts.push(`${what.replaceAll("_", " ")}: half within ${microseconds(latency.p50_us)}, 99 % within ${microseconds(latency.p99_us)}`);
  }
  const ended = Object.entries(service.terminations).filter(([, count]) => count > 0);
  if (ended.length > 0) parts.push(`ended: ${ended.map(([label, count]) => `${label} ${thousands(count)}`).join(", ")}`);
  return parts;
}

function microseconds(us) {
  return us < 1000 ? `${us} µs` : us < 10_000 ? `${(us / 1000).toFixed(1)} ms` : span(us / 1000);
}
