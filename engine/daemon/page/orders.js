// Orders about servers: what they would do is asked first, and where too few servers would be left, whoever orders says so twice.

import * as api from "./api.js";
import { takersWords } from "./attention.js";
import { badge, element, say, set } from "./dom.js";
import { counted, healthState, isSorry, socket, span, takesNew, thousands } from "./words.js";

const get = (id) => document.querySelector(`#${id}`);

/** Words of an order, by its verb. */
const VERBS = {
  drain: { title: "Drain", done: "drains" },
  halt: { title: "Halt", done: "is halted" },
  ready: { title: "Ready", done: "is ready" },
  weight: { title: "Weight of", done: "has its new weight" },
};

/** The largest weight, and the largest number of connections. */
const WEIGHT_MAX = 65_535;
const UNTIL_MAX = 4_294_967_295;
/** A drain has 30 days at most. */
const MINUTES_MAX = 43_200;

/** After the last key so long is waited until the daemon is asked what would happen. */
const SETTLE_MS = 250;

/**
 * What an order would leave: per service that loses takers of new clients `{ service, before, after, all, few }`. `few`: none is left, or less than half
 * of its servers. `members` is the daemon's answer, `status` what is known of the servers.
 */
export function leftBy(members, status) {
  const changed = new Map(members.map((member) => [`${member.service} ${socket(member.address, member.port)}`, member.after]));
  const concerned = new Set(members.map((member) => member.service));
  return status.services
    .filter((service) => concerned.has(service.name))
    .map((service) => {
      const servers = service.servers.filter((server) => !isSorry(server));
      const after = servers.filter((server) => {
        const then = changed.get(`${service.name} ${socket(server.address, server.port)}`);
        return takesNew(then ? { ...server, admin: then.admin, weight: then.weight } : server);
      }).length;
      const [before, all] = [servers.filter(takesNew).length, servers.length];
      return { service: service.name, before, after, all, few: after < before && after * 2 < all };
    });
}

export class Orders {
  #status;
  #done;
  #lost;
  #current = null;
  #asked = 0;

  /** `status()` is what is known; `done(words, undo)` after an order; `lost(refusal)` says whether a refusal was the end of the session. */
  constructor({ status, done, lost }) {
    this.#status = status;
    this.#done = done;
    this.#lost = lost;
    get("order-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#give();
    });
    get("order-cancel").addEventListener("click", () => get("order").close());
    get("check-close").addEventListener("click", () => get("check").close());
    get("order").addEventListener("close", () => {
      // It is told of later, and may have been opened again by then.
      if (get("order").open) return;
      this.#current = null;
      this.#asked += 1;
    });
    get("order-everywhere").addEventListener("change", () => this.#foresee());
    get("weight-configured").addEventListener("change", () => {
      get("weight-number").disabled = get("weight-configured").checked;
      this.#foresee();
    });
    for (const id of ["weight-number", "drain-until", "drain-minutes"]) get(id).addEventListener("input", () => this.#foresee(SETTLE_MS));
    get("drain-deadline").addEventListener("change", () => {
      // As the daemon means it where nothing is said.
      get("drain-then").value = get("drain-deadline").value === "" ? "stay" : "halt";
      this.#offerMinutes();
      this.#foresee();
    });
    get("order-sure-box").addEventListener("change", () => this.#allow());
  }

  /** A button was pressed. Drain and ready happen at once unless too few servers would be left: they end nothing, and can be taken back. */
  async press(verb, server) {
    if (verb === "check") return this.#check(server);
    if (verb === "drain" || verb === "ready") {
      try {
        const foreseen = await api.order(verb, server.service, socket(server.address, server.port), { dry_run: true });
        if (foreseen.warnings.length === 0 && !leftBy(foreseen.members, this.#status()).some((left) => left.few)) {
          const ordered = await api.order(verb, server.service, socket(server.address, server.port), {});
          return this.#told(verb, server, ordered);
        }
      } catch (refusal) {
        if (this.#lost(refusal)) return;
        return this.#done(`${server.name}: ${refusal.message}`, null, "bad");
      }
    }
    this.#open(verb === "drain-by" ? "drain" : verb, server, verb === "drain-by");
  }

  #open(verb, server, withDeadline) {
    this.#current = { verb, server, few: false, foreseen: false };
    const { title } = VERBS[verb];
    say(get("order-heading"), `${title} ${server.name} of ${server.service}`);
    const inside = counted(server.service_connections, "connection");
    const words = {
      drain: `New clients go elsewhere. What it holds of this service goes on until it ends by itself: ${inside}.`,
      halt: `What it holds of this service ends now: ${inside}. No new one reaches it.`,
      ready: "It takes new clients again as soon as its check passes.",
      weight: `It has ${thousands(server.weight)} now.`,
    };
    say(get("order-what"), words[verb]);
    say(get("order-go"), verb === "weight" ? "Set the weight" : `${title} ${server.name}`);
    set(get("order-weight"), "hidden", verb !== "weight");
    set(get("order-drain"), "hidden", verb !== "drain");
    get("order-form").reset();
    get("weight-number").value = server.weight;
    get("weight-number").disabled = false;
    if (withDeadline) {
      get("drain-deadline").value = "300000";
      get("drain-then").value = "halt";
    }
    this.#offerMinutes();
    get("order-everywhere").nextElementSibling.textContent = `in every service that ${server.address} is in`;
    this.#fail(null);
    get("order").showModal();
    (verb === "weight" ? get("weight-number") : verb === "drain" ? get("drain-deadline") : get("order-reason")).focus();
    this.#foresee();
  }

  #offerMinutes() {
    for (const each of document.querySelectorAll(".drain-minutes")) set(each, "hidden", get("drain-deadline").value !== "minutes");
  }

  /** Whom the order is about, as the API has it. */
  #whom() {
    const { server } = this.#current;
    return get("order-everywhere").checked ? [null, server.address] : [server.service, socket(server.address, server.port)];
  }

  #body() {
    const { verb } = this.#current;
    const body = {};
    const reason = get("order-reason").value.trim();
    if (reason !== "") body.reason = reason;
    if (verb === "drain") {
      const deadline = get("drain-deadline").value;
      if (deadline === "minutes") body.deadline_ms = minutesMs();
      else if (deadline !== "") body.deadline_ms = Number(deadline);
      const until = whole("drain-until", UNTIL_MAX, "A number of connections");
      if (until > 0) body.until = until;
      body.then = get("drain-then").value;
    }
    if (verb === "weight") {
      body.weight = get("weight-configured").checked ? "configured" : whole("weight-number", WEIGHT_MAX, "A weight");
    }
    return body;
  }

  /** Asks what would happen, and shows it. */
  async #foresee(waitMs = 0) {
    const asked = ++this.#asked;
    this.#current.foreseen = false;
    this.#allow();
    if (waitMs > 0) await new Promise((resolve) => setTimeout(resolve, waitMs));
    if (asked !== this.#asked) return;
    const { verb } = this.#current;
    try {
      const { members, warnings } = await api.order(verb, ...this.#whom(), { ...this.#body(), dry_run: true });
      if (asked !== this.#asked) return;
      this.#fail(null);
      this.#show(members, warnings);
    } catch (refusal) {
      if (asked !== this.#asked || this.#lost(refusal)) return;
      this.#fail(refusal.message);
    }
  }

  #show(members, warnings) {
    const { verb } = this.#current;
    const left = leftBy(members, this.#status());
    const lines = left.map((one) => `${one.service}: ${takersWords(one.after, one.all)} then`);
    if (verb === "halt") {
      const inside = members.reduce((sum, member) => sum + member.connections, 0);
      lines.unshift(`${counted(inside, "connection")} will be ended.`);
    }
    get("order-effect").replaceChildren(...lines.map((line) => element("div", {}, line)));
    const few = left.filter((one) => one.few);
    this.#current.few = warnings.length > 0 || few.length > 0;
    this.#current.foreseen = true;
    const words = warnings.length > 0 ? warnings : few.map((one) => `service ${one.service}: only ${takersWords(one.after, one.all)}`);
    say(get("order-sure-words"), `${words.join("; ")}. Do it nevertheless.`);
    set(get("order-sure"), "hidden", !this.#current.few);
    this.#allow();
  }

  /** The button works once it is known what it does, and that is wanted. */
  #allow() {
    const { foreseen, few, verb } = this.#current;
    get("order-go").disabled = !foreseen || (few && !get("order-sure-box").checked);
    get("order-go").className = few || verb === "halt" ? "grave" : "first";
  }

  #fail(message) {
    say(get("order-error"), message ?? "");
    set(get("order-error"), "hidden", message === null);
  }

  async #give() {
    if (get("order-go").disabled) return;
    const { verb, server } = this.#current;
    this.#asked += 1;
    get("order-go").disabled = true;
    try {
      const ordered = await api.order(verb, ...this.#whom(), this.#body());
      get("order").close();
      this.#told(verb, server, ordered);
    } catch (refusal) {
      if (this.#lost(refusal)) return;
      this.#fail(refusal.message);
      if (this.#current) this.#allow();
    }
  }

  #told(verb, server, ordered) {
    const where = ordered.members.length > 1 ? ` in ${counted(ordered.members.length, "service")}` : ` of ${server.service}`;
    const warnings = ordered.warnings.length > 0 ? ` ${ordered.warnings.join("; ")}.` : "";
    const [member] = ordered.members;
    // One server of one service is put back as it was; not into a drain, whose limits are gone.
    const back = ordered.members.length === 1 && verb === "drain" && member.before.admin === "ready";
    const undo = back ? () => this.press("ready", server) : null;
    this.#done(`${server.name}${where} ${VERBS[verb].done}.${warnings}`, undo, ordered.warnings.length > 0 ? "warn" : "good");
  }

  async #check(server) {
    const [dialog, result] = [get("check"), get("check-result")];
    say(get("check-heading"), `Check ${server.name} of ${server.service}`);
    result.replaceChildren(element("p", { class: "quiet" }, "Running its checks …"));
    dialog.showModal();
    try {
      const { servers } = await api.check(server.service, socket(server.address, server.port));
      result.replaceChildren(...servers.flatMap(checked));
    } catch (refusal) {
      if (this.#lost(refusal)) return;
      result.replaceChildren(element("p", { class: "notice", "data-tone": "bad" }, refusal.message));
    }
  }
}

/** What stands in a field, if it is a whole number up to `max`. */
function whole(id, max, what) {
  const field = get(id);
  // A field of numbers has no text where that is none.
  const number = field.value === "" ? NaN : Number(field.value);
  if (!Number.isInteger(number) || number < 0 || number > max) {
    throw new api.Refusal(0, "not_a_number", `${what} is a whole number from 0 to ${thousands(max)}.`);
  }
  return number;
}

/** The minutes that somebody wants, parts of one, too. */
function minutesMs() {
  const { value } = get("drain-minutes");
  const ms = Math.round((value === "" ? NaN : Number(value)) * 60_000);
  if (!(ms > 0) || ms > MINUTES_MAX * 60_000) {
    throw new api.Refusal(0, "not_a_number", `Minutes are more than 0 and at most ${thousands(MINUTES_MAX)}, which is 30 days.`);
  }
  return ms;
}

/** What the checks of one server did, step by step. */
function checked(server) {
  if (server.checks.length === 0) return [element("p", {}, "It has no check: it counts as up.")];
  return server.checks.map((run) => {
    const verdict = badge("lamp");
    verdict.update({ ...healthState(run.passed ? "up" : "down"), word: run.passed ? "passed" : "failed" });
    const why = run.reason === "" ? "" : `: ${run.reason}`;
    const rows = run.ports.flatMap((port) =>
      port.steps.map((step) => {
        const sign = badge("lamp");
        sign.update({ ...healthState(step.passed ? "up" : "down"), word: step.step });
        return element("tr", {}, element("td", {}, port.socket), element("td", {}, sign.node), element("td", { class: "figure" }, took(step.took_us)), element("td", {}, step.detail));
      }),
    );
    const head = ["Port", "Step", "Took", "What came of it"].map((title) => element("th", { scope: "col" }, title));
    return element(
      "div",
      {},
      element("p", {}, verdict.node, ` ${run.check} in ${took(run.took_us)}${why}`),
      rows.length > 0 ? element("table", {}, element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...rows)) : null,
    );
  });
}

function took(us) {
  return us < 1000 ? `${us} µs` : us < 1_000_000 ? `${(us / 1000).toFixed(1)} ms` : span(us / 1000);
}
