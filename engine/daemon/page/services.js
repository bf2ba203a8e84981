// The table of services, and below each its servers.

import { badge, element, following, say, set, sparkline } from "./dom.js";
import { PLACES } from "./history.js";
import { bytes, counted, countdown, healthState, microseconds, orders, ports, rate, serverState, serviceState, socket, span, standing, thousands } from "./words.js";

/** With so few services all of them are open until somebody closes them. */
const OPEN_MAX = 4;
/** So many rows are drawn until somebody wants more: a thousand that are ordered anew hold a browser up for half a second. */
const SHOWN_STEP = 100;

const GRAVITY = { bad: 0, warn: 1, calm: 2 };
const last = (values) => values.at(-1) ?? 0;
const byName = (a, b) => a.name.localeCompare(b.name, "en", { numeric: true });

/**
 * What services can be sorted by, and how: `way` is 1 for what is read upwards, -1 where the most stands first. Equals stay in the order of the file.
 */
const ORDERS = {
  service: { way: 1, compare: byName },
  state: { way: 1, compare: (a, b) => gravity(a) - gravity(b) },
  vip: { way: 1, compare: (a, b) => a.vip.localeCompare(b.vip, "en", { numeric: true }) },
  connections: { way: -1, compare: (a, b) => a.connections - b.connections },
  opened: { way: -1, compare: (a, b, history) => last(history.of(a.name).opened) - last(history.of(b.name).opened) },
  bytes: { way: -1, compare: (a, b, history) => last(history.of(a.name).bytes) - last(history.of(b.name).bytes) },
};

export class Services {
  #act;
  #follow;
  /** What somebody has opened or closed, by the name of the service. */
  #chosen = new Map();
  #context = null;
  /** Another filter or order begins at the top again. */
  #shownMax = SHOWN_STEP;

  /** `act(verb, service, server, from)` when somebody presses a button. */
  constructor(act) {
    this.#act = act;
    this.#follow = following(document.querySelector("#service-rows"), (service) => service.name, () => this.#row());
    const anew = () => {
      this.#shownMax = SHOWN_STEP;
      this.#render();
    };
    document.querySelector("#filter").addEventListener("input", anew);
    document.querySelector("#troubled").addEventListener("change", anew);
    document.querySelector("#sort").addEventListener("change", anew);
    for (const head of document.querySelectorAll("#service-table th[data-sort]")) {
      head.firstElementChild.addEventListener("click", () => {
        const sort = document.querySelector("#sort");
        const [by, turned] = sort.value.split(" ");
        // Once as it is usual, once the other way round, then as in the file.
        sort.value = by !== head.dataset.sort ? head.dataset.sort : turned ? "" : `${by} turned`;
        anew();
      });
    }
    document.querySelector("#more-services").addEventListener("click", () => {
      this.#shownMax += SHOWN_STEP;
      this.#render();
    });
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
    const found = services.filter((service) => matches(service, wanted) && (!troubled || isTroubled(service)));
    const shown = this.#sorted(found).slice(0, this.#shownMax);
    this.#follow(shown);
    const more = found.length - shown.length;
    set(document.querySelector("#more-services"), "hidden", more === 0);
    say(document.querySelector("#more-services"), `Show ${thousands(Math.min(more, SHOWN_STEP))} more`);
    set(document.querySelector("#services-shown"), "hidden", found.length === services.length && more === 0);
    const of = found.length === services.length ? "" : ` that are like that, of ${thousands(services.length)}`;
    say(document.querySelector("#services-shown"), more > 0 ? `${thousands(shown.length)} of ${thousands(found.length)}${of}` : `${thousands(found.length)} of ${thousands(services.length)}`);
    set(document.querySelector("#no-services"), "hidden", services.length > 0);
    set(document.querySelector("#none-match"), "hidden", services.length === 0 || shown.length > 0);
    set(document.querySelector("#service-table"), "hidden", shown.length === 0);
  }

  #sorted(services) {
    const [by, turned] = document.querySelector("#sort").value.split(" ");
    for (const head of document.querySelectorAll("#service-table th[data-sort]")) {
      const way = (ORDERS[head.dataset.sort].way === 1) === !turned ? "ascending" : "descending";
      set(head, "aria-sort", head.dataset.sort === by ? way : null);
    }
    const order = ORDERS[by];
    if (!order) return services;
    const way = turned ? -order.way : order.way;
    return services.toSorted((a, b) => way * order.compare(a, b, this.#context.history));
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
    const latencies = element("ul", { class: "latencies", role: "list" });
    const more = element("p", { class: "more" });
    const members = element("tr", { role: "row", class: "members" }, element("td", { role: "cell", colspan: 10 }, list, latencies, more));
    const followLatencies = following(latencies, ([what]) => what, latency);
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
        const measured = Object.entries(service.latencies ?? {}).filter(([, { count }]) => count > 0);
        set(latencies, "hidden", measured.length === 0);
        followLatencies(measured.map(([what, ever]) => [what, ever, history.lately(service.name)[what]]));
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
    const load = course();
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
      element("div", { class: "load" }, load.node, weight),
      acts,
    );
    return {
      nodes: [node],
      update: (next) => {
        server = next;
        const { history, nowMs, passedMs, may, stale } = this.#context;
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
        load.update(history.ofServer(server), () => `${counted(server.connections, "connection")}${max}`);
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
  const ended = Object.entries(service.terminations).filter(([, count]) => count > 0);
  if (ended.length > 0) parts.push(`ended: ${ended.map(([label, count]) => `${label} ${thousands(count)}`).join(", ")}`);
  return parts;
}

/** How long something took: lately, and since the start. */
function latency() {
  const [what, lately, ever] = [element("span", { class: "name" }), element("span", { class: "figures" }), element("span", { class: "quiet figures" })];
  return {
    nodes: [element("li", {}, what, lately, ever)],
    update([name, since, recent]) {
      say(what, LATENCIES[name] ?? name);
      const within = (p50, p99) => `half within ${microseconds(p50)}, 99 % within ${microseconds(p99)}`;
      say(lately, recent && recent.count > 0 ? within(recent.p50Us, recent.p99Us) : "nothing lately");
      say(ever, `since the start ${within(since.p50_us, since.p99_us)}`);
    },
  };
}

const LATENCIES = { connect: "Connect", first_byte: "First byte", handshake: "TLS handshake", queue: "Queue" };

function gravity(service) {
  return GRAVITY[serviceState(service).tone] ?? (isTroubled(service) ? 2 : 3);
}
