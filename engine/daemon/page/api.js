// What the page asks the daemon. Every answer that is no success becomes a `Refusal`, also where none came.

/** How long an answer is waited for, by what it takes to give it. */
const LOOK_MS = 10_000;
const ORDER_MS = 20_000;
const CHECK_MS = 610_000;

/** Why something was not answered or not done. */
export class Refusal extends Error {
  /** `status` is that of HTTP, 0 where no answer came; `code` is the word for programs. */
  constructor(status, code, message, retryAfterS = null) {
    super(message);
    this.status = status;
    this.code = code;
    this.retryAfterS = retryAfterS;
  }
}

/** Sent with every change: a page of another site does not know it. */
let csrf = "";

async function call(method, path, { body, limitMs = LOOK_MS, background = false } = {}) {
  const headers = { Accept: "application/json" };
  if (method !== "GET") {
    headers["Content-Type"] = "application/json";
    if (csrf !== "") headers["X-CSRF-Token"] = csrf;
  }
  // A page that is only looked at is no use of it: the session ends as if it were closed.
  if (background) headers["X-Towpath-Background"] = "1";
  let answer;
  let text;
  try {
    answer = await fetch(path, {
      method,
      headers,
      body: method === "GET" ? undefined : JSON.stringify(body ?? {}),
      cache: "no-store",
      credentials: "same-origin",
      redirect: "error",
      signal: AbortSignal.timeout(limitMs),
    });
    text = await answer.text();
  } catch (error) {
    const late = error.name === "TimeoutError";
    throw new Refusal(0, late ? "timed_out" : "unreachable", late ? `no answer within ${limitMs / 1000} s` : "the daemon cannot be reached");
  }
  let value = null;
  try {
    value = text === "" ? null : JSON.parse(text);
  } catch {
    throw new Refusal(answer.status, "malformed", "the answer is not JSON; is something between this page and the daemon?");
  }
  if (answer.ok) return value;
  const retryAfterS = Number.parseInt(answer.headers.get("Retry-After") ?? "", 10);
  throw new Refusal(
    answer.status,
    value?.error?.code ?? "refused",
    value?.error?.message ?? `the daemon answered ${answer.status}`,
    Number.isNaN(retryAfterS) ? null : retryAfterS,
  );
}

function servers(service, server, verb) {
  const part = (name) => (name === null ? "*" : encodeURIComponent(name).replaceAll("*", "%2A"));
  return `/v1/services/${part(service)}/servers/${part(server)}/${verb}`;
}

function adopt(session) {
  csrf = session?.csrf ?? "";
  return session;
}

/** Who is logged in; asking is a use of the page. */
export const session = async () => adopt(await call("GET", "/v1/session"));

export const login = async (user, password) => adopt(await call("POST", "/v1/login", { body: { user, password } }));

export async function logout() {
  await call("POST", "/v1/logout");
  adopt(null);
}

export const status = () => call("GET", "/v1/status", { background: true });

/** What is scarce and how full it is, with what to do about it. */
export const limits = async () => (await call("GET", "/v1/limits", { background: true })).limits;

/** Certificates and other files that end, what ends first stands first. */
export const certificates = async () => (await call("GET", "/v1/certs", { background: true })).certificates;

/** `service` null = every one. `body` as in the reference of the API. */
export const order = (verb, service, server, body) => call("POST", servers(service, server, verb), { body, limitMs: ORDER_MS });

/** Has the checks of a server run now. */
export const check = (service, server) => call("POST", servers(service, server, "check"), { limitMs: CHECK_MS });
