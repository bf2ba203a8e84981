// Figures and states in words, the same as `towpath status` prints. Pure: what is shown depends on the arguments alone.

/** "1,234,567" */
export function thousands(number) {
  return String(Math.round(number)).replace(/\B(?=(\d{3})+$)/g, ",");
}

/** "1 server", "2 servers" */
export function counted(number, noun) {
  return `${thousands(number)} ${noun}${number === 1 ? "" : "s"}`;
}

/** Milliseconds as "999 ms", "59 s", "3 min 20 s", "2 h 4 min", "1 d 1 h". */
export function span(ms) {
  const [s, min, h, d] = [1000, 60_000, 3_600_000, 86_400_000].map((unit) => Math.floor(ms / unit));
  if (s === 0) return `${Math.max(0, Math.floor(ms))} ms`;
  if (min === 0) return `${s} s`;
  if (h === 0) return `${min} min ${s % 60} s`;
  if (d === 0) return `${h} h ${min % 60} min`;
  return `${d} d ${h % 24} h`;
}

/** Milliseconds as a clock that counts down: "4:05", "1:00:00". A second begun is a second left. */
export function countdown(ms) {
  const seconds = Math.max(0, Math.ceil(ms / 1000));
  const two = (number) => String(number).padStart(2, "0");
  const [h, min, s] = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60, seconds % 60];
  return h > 0 ? `${h}:${two(min)}:${two(s)}` : `${min}:${two(s)}`;
}

/** "999 B", "1.2 GB" */
export function bytes(count) {
  const units = ["B", "KB", "MB", "GB", "TB", "PB"];
  let [amount, unit] = [count, 0];
  // What would be written as 1000.0 is 1.0 of the next unit.
  while (amount >= (unit === 0 ? 1000 : 999.95) && unit + 1 < units.length) {
    amount /= 1000;
    unit += 1;
  }
  return unit === 0 ? `${Math.round(amount)} B` : `${amount.toFixed(1)} ${units[unit]}`;
}

/** A rate: one digit behind the point as long as that says something. */
export function rate(perSecond) {
  return perSecond > 0 && perSecond < 10 ? perSecond.toFixed(1) : thousands(perSecond);
}

/** Ports in order, neighbours as ranges: "80, 443, 50000-50099". None is every port. */
export function ports(all) {
  if (all.length === 0) return "all";
  const ranges = [];
  for (const port of all) {
    const last = ranges.at(-1);
    if (last && last[1] + 1 === port) last[1] = port;
    else ranges.push([port, port]);
  }
  // Two neighbours are no range yet.
  return ranges.map(([from, to]) => (from === to ? `${from}` : to === from + 1 ? `${from}, ${to}` : `${from}-${to}`)).join(", ");
}

/** "192.0.2.31:443", "[2001:db8::1]:443"; without a port the address alone. */
export function socket(address, port) {
  if (port === null || port === undefined) return address;
  return address.includes(":") ? `[${address}]:${port}` : `${address}:${port}`;
}

/** "2026-11-22 17:43:06 UTC": one clock for page, log and other machines. */
export function utc(unixMs) {
  return `${new Date(unixMs).toISOString().slice(0, 19).replace("T", " ")} UTC`;
}

/** "17:43:06", with the day in front of it where that is another one than `nowMs`. */
export function clock(unixMs, nowMs) {
  const [then, now] = [unixMs, nowMs].map((ms) => new Date(ms).toISOString());
  const time = then.slice(11, 19);
  return then.slice(0, 10) === now.slice(0, 10) ? time : `${then.slice(0, 10)} ${time}`;
}

// A state is a word, a tone (colour) and a shape, so that none of them is needed to read the others.
const state = (word, tone, shape) => ({ word, tone, shape });

/** How a service is. */
export function serviceState(service) {
  const states = {
    up: state("up", "good", "up"),
    degraded: state("degraded", "warn", "degraded"),
    down: state("down", "bad", "down"),
  };
  return states[service.state] ?? state(service.state, "warn", "unknown");
}

/** What a health check says. */
export function healthState(health) {
  const states = {
    up: state("up", "good", "up"),
    down: state("down", "bad", "down"),
    held: state("held", "warn", "held"),
    unknown: state("unknown", "warn", "unknown"),
  };
  return states[health] ?? state(health, "warn", "unknown");
}

/** The first thing to know of a server: the operator's word where there is one, else its health. */
export function serverState(server) {
  if (server.admin === "halt") return state("halt", "calm", "halt");
  if (server.admin === "drain") {
    const over = server.admin_said?.drain?.over;
    return over || server.service_connections === 0 ? state("drained", "calm", "drain") : state("drain", "calm", "drain");
  }
  if (isSorry(server) && server.duty !== "standby") return state("sorry", "warn", "degraded");
  if (server.health === "up" && server.duty === "standby") return state("standby", "calm", "standby");
  return healthState(server.health);
}

/** Whether it only says that nobody can serve: it is no server that a service has. */
export function isSorry(server) {
  return server.sorry === true;
}

/** Whether new clients may be sent to it now, as far as its status tells. */
export function takesNew(server) {
  if (isSorry(server) || server.admin !== "ready" || server.weight === 0 || server.duty === "standby") return false;
  return server.health === "up" || server.duty === "fail-open";
}

/** Why its health is as it is, behind what part it has in the service if that is not the usual one. */
export function standing(server) {
  const parts = {
    backup: "serves as backup",
    standby: "stands by",
    "fail-open": "used although it is not up",
    sorry: "serves because nobody else can",
  };
  const part = parts[server.duty];
  const reason = server.agent ? `${server.reason}; agent: ${server.agent}` : server.reason;
  const closed = (server.closed_ports ?? []).length > 0 ? `; not up: ${ports(server.closed_ports)}` : "";
  return `${part ? `${part}: ` : ""}${reason}${closed}`;
}

/** Whom an order came from, without the number of the process. */
function because(reason) {
  return reason === "" ? "" : `: ${reason}`;
}

/** "over in 4:00 or at 5 connections, then halt", or how it ended. `passedMs` has passed since the daemon said it. */
export function drainWords(drain, passedMs) {
  if (drain.over) {
    const why = drain.over.why === "deadline" ? "its deadline has passed" : "few enough connections were left";
    const left = counted(drain.over.left, "connection");
    return drain.then === "halt" ? `${why}, ${left} ended` : `${why}, ${left} left then`;
  }
  const at = drain.until === 0 ? "when no connection is left" : `at ${counted(drain.until, "connection")}`;
  const by = drain.deadline_in_ms === null ? "" : `in ${countdown(drain.deadline_in_ms - passedMs)} or `;
  return `over ${by}${at}${drain.then === "halt" ? ", then halt" : ""}`;
}

/** What the operator has said of a server, one sentence each; nothing where the configuration's word holds. */
export function orders(server, nowMs, passedMs) {
  const lines = [];
  const said = server.admin_said;
  if (said) {
    const configured = said.configured === server.admin || said.configured === "ready" ? "" : ` (configured: ${said.configured})`;
    const drain = said.drain ? `; ${drainWords(said.drain, passedMs)}` : "";
    lines.push(`${server.admin}${configured} for ${span(nowMs - said.since_unix_ms)} by ${said.by}${because(said.reason)}${drain}`);
  }
  const weight = server.weight_said;
  if (weight) {
    lines.push(`weight changed from ${weight.configured} ${span(nowMs - weight.since_unix_ms)} ago by ${weight.by}${because(weight.reason)}`);
  }
  return lines;
}

/** Certificates that end within so many days stand out, and those that end within so few even more. */
const CERTIFICATE_NEAR_DAYS = 30;
const CERTIFICATE_URGENT_DAYS = 7;

/** What it is for, or for a file that is none, where it is. */
export function certificateName(row) {
  return row.names.join(", ") || (row.kind === "certificate" ? "no name" : row.file.split("/").at(-1));
}

/** How near the end of a certificate is. Lists and responses that are made anew all the time are judged by the daemon: it knows for how long they are good. */
export function certificateState(certificate) {
  const level = certificate.kind === "certificate" ? undefined : certificate.level;
  if (level === "valid") return state(`${span(certificate.seconds_left * 1000)} left`, "good", "up");
  if (level === "ends soon") return state(`${span(certificate.seconds_left * 1000)} left`, "warn", "warning");
  const left = certificate.seconds_left;
  const days = Math.floor(left / 86_400);
  if (left < 0) return state(`ended ${span(-left * 1000)} ago`, "bad", "down");
  if (left > certificate.not_after_unix_seconds - certificate.not_before_unix_seconds) return state("not valid yet", "bad", "down");
  const words = days < 2 ? `${span(left * 1000)} left` : `${thousands(days)} days left`;
  if (days < CERTIFICATE_URGENT_DAYS) return state(words, "bad", "warning");
  if (days < CERTIFICATE_NEAR_DAYS) return state(words, "warn", "warning");
  return state(words, "good", "up");
}

/** How near a limit is, as the daemon judges it. */
export function limitState(limit) {
  const states = { ok: state("", "good", "up"), high: state("filling up", "warn", "warning"), full: state("full", "bad", "warning") };
  return states[limit.level] ?? state(limit.level, "warn", "unknown");
}

/** "Connections", "Queue of owa" */
export function limitName(limit) {
  const name = limit.name[0].toUpperCase() + limit.name.slice(1);
  return limit.subject === null ? name : `${name} of ${limit.subject}`;
}

/** Where two machines share their addresses, which of them this is. */
export function roleState(role) {
  const states = { active: state("active", "good", "up"), standby: state("standby", "calm", "standby") };
  return states[role] ?? state(role || "unknown", "warn", "unknown");
}

/**
 * What became of the last reload, by its event; null where none is known. One that was refused leaves the generation as it was: then what runs is not
 * what the file says.
 */
export function lastReload(events) {
  // Others tell what it has changed.
  const ofReload = ({ kind, from, reason }) => kind === "configuration" && [from, reason].some((text) => text.startsWith("generation "));
  const event = events.findLast(ofReload);
  if (!event) return null;
  const { change, why } = eventParts(event);
  const refused = event.from !== "" && event.from === event.to;
  return { refused, unixMs: event.unix_ms, words: refused || change === "" ? why : [change, why].filter((part) => part !== "").join(": ") };
}

/** From whom this process has taken over, and what finishes there. */
export function takenOverWords(takenOver, nowMs) {
  const { pid, version, at_unix_ms, finishing } = takenOver;
  const rest = finishing === null ? "which has gone" : `where ${counted(finishing, "connection")} finish${finishing === 1 ? "es" : ""}`;
  return `from process ${pid} (${version}) ${span(Math.max(0, nowMs - at_unix_ms))} ago, ${rest}`;
}

/** Microseconds as "850 µs", "2.5 ms", "150 ms", "1.2 s"; null where nothing was measured. */
export function microseconds(us) {
  if (us === null || us === undefined) return "–";
  if (us < 1000) return `${us} µs`;
  if (us < 10_000) return `${(us / 1000).toFixed(1)} ms`;
  return us < 1_000_000 || us >= 60_000_000 ? span(us / 1000) : `${(us / 1_000_000).toFixed(1)} s`;
}

/** "1,200 of 9,936", of memory "200.0 MB of 8.3 GB". */
export function limitWords({ used, max, unit }) {
  const amount = unit === "bytes" ? bytes : thousands;
  return `${amount(used)} of ${amount(max)}`;
}

/** A share in percent, never rounded to nothing nor to all. */
export function percent(used, max) {
  if (max === 0) return "0 %";
  const share = (used / max) * 100;
  if (share > 0 && share < 1) return "< 1 %";
  if (share < 100 && share > 99) return "> 99 %";
  return `${Math.round(share)} %`;
}

/** "front-end, web: server FE-1: up → down: port 5061: connection refused" as parts. */
export function eventParts(event) {
  const whom = [event.services.join(", "), event.subject ?? ""].filter((part) => part !== "").join(" · ");
  const change = event.from !== "" && event.to !== "" ? `${event.from} → ${event.to}` : event.from + event.to;
  return { whom, change, why: event.reason };
}
