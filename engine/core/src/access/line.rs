//! One record as a line, without its end.

use std::fmt::{self, Display, Write as _};
use std::net::SocketAddr;

use towpath_config::model::{LogFormat, LoggedQuery};

use super::escape::Escape;
use super::query::without_secrets;
use super::when::{Utc, utc};
use super::{Record, Request, Text};

/// How lines are to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shown {
    /// Which fields, in which order.
    pub format: LogFormat,
    /// What of queries is written.
    pub query: LoggedQuery,
    /// Milliseconds since 1970 at `Now(0)`.
    pub origin_unix_ms: u64,
}

/// Appends the line of `record`.
pub fn line(record: &Record, shown: &Shown, out: &mut Vec<u8>) {
    let line = Line { record, shown, at: utc(shown.origin_unix_ms.saturating_add(record.began.0)), out };
    match shown.format {
        LogFormat::Combined => line.combined(),
        LogFormat::Haproxy => line.haproxy(),
        LogFormat::Json => line.json(),
    }
}

struct Line<'l> {
    record: &'l Record,
    shown: &'l Shown,
    at: Utc,
    out: &'l mut Vec<u8>,
}

/// Text into bytes; that never fails.
struct Sink<'o>(&'o mut Vec<u8>);

impl fmt::Write for Sink<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.extend_from_slice(text.as_bytes());
        Ok(())
    }
}

/// A time, or -1 where it did not come so far.
struct Timer(Option<u64>);

impl Display for Timer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(ms) => ms.fmt(f),
            None => f.write_str("-1"),
        }
    }
}

/// The name of the group, and of the server if there was one.
fn server_of(record: &Record) -> (&str, Option<&str>) {
    match &record.server {
        Some((place, server)) => (&place.group, place.target_of(*server).map(|(_, target)| target.name.as_str())),
        None => (&record.service.group, None),
    }
}

impl Line<'_> {
    fn put(&mut self, text: impl Display) {
        // The sink takes everything.
        let _ = write!(Sink(self.out), "{text}");
    }

    fn text(&mut self, text: &[u8], escape: Escape) {
        escape.put(text, self.out);
    }

    fn target(&mut self, target: &[u8], escape: Escape) {
        let out = &mut *self.out;
        without_secrets(target, self.shown.query, |part| escape.put(part, out));
    }

    /// The request's first line; `bad` where there was none that could be read.
    fn first_line(&mut self, request: Request, bad: &str, escape: Escape) {
        let record = self.record;
        let (Some(method), Some(target), true) =
            (record.texts.get(Text::Method), record.texts.get(Text::Target), request.is_read)
        else {
            return self.put(bad);
        };
        self.text(method, escape);
        self.out.push(b' ');
        self.target(target, escape);
        let (major, minor) = request.version;
        self.put(format_args!(" HTTP/{major}.{minor}"));
    }

    /// `option httplog` and `option tcplog` of HAProxy, without what stands in front of them in syslog.
    fn haproxy(mut self) {
        let Record { client, timers, load, .. } = self.record;
        let name = Escape::Hash { quoted: false };
        let Utc { year, day, hour, minute, second, ms, .. } = self.at;
        let month = self.at.month_name();
        self.put(format_args!(
            "{}:{} [{day:02}/{month}/{year:04}:{hour:02}:{minute:02}:{second:02}.{ms:03}] ",
            client.ip(),
            client.port()
        ));
        let record = self.record;
        self.text(record.service.name.as_bytes(), name);
        if record.tls.is_some() {
            self.out.push(b'~');
        }
        self.out.push(b' ');
        let (group, server) = server_of(record);
        self.text(group.as_bytes(), name);
        self.out.push(b'/');
        match server {
            Some(server) => self.text(server.as_bytes(), name),
            None => self.put("<NOSRV>"),
        }
        let [wait, connect] = [timers.wait_ms, timers.connect_ms].map(Timer);
        let total = timers.total_ms;
        let bytes = record.bytes_to_client;
        let [first, second] = record.code().map(char::from);
        match record.request {
            Some(request) => {
                let [head, response] = [timers.request_ms, timers.response_ms].map(Timer);
                let status = Timer((request.status > 0).then_some(u64::from(request.status)));
                self.put(format_args!(
                    " {head}/{wait}/{connect}/{response}/{total} {status} {bytes} - - {first}{second}--"
                ));
            }
            None => self.put(format_args!(" {wait}/{connect}/{total} {bytes} {first}{second}")),
        }
        // How many were served before it while it waited is not counted; how long that was is in Tw.
        self.put(format_args!(
            " {}/{}/{}/{}/{} 0/0",
            load.process, load.service, load.service, load.server, record.redispatches
        ));
        if let Some(request) = record.request {
            self.put(" \"");
            self.first_line(request, "<BADREQ>", Escape::Hash { quoted: true });
            self.out.push(b'"');
        }
    }

    /// The combined log format of Apache and nginx.
    fn combined(mut self) {
        let record = self.record;
        let Utc { year, day, hour, minute, second, .. } = self.at;
        let month = self.at.month_name();
        self.put(format_args!(
            "{} - - [{day:02}/{month}/{year:04}:{hour:02}:{minute:02}:{second:02} +0000] \"",
            record.client.ip()
        ));
        let request = record.request.unwrap_or_default();
        self.first_line(request, "-", Escape::Slash);
        let body = record.bytes_to_client.saturating_sub(request.head_bytes);
        self.put(format_args!("\" {} {body} \"", request.status));
        match record.texts.get(Text::Referer) {
            Some(referer) => self.target(referer, Escape::Slash),
            None => self.put("-"),
        }
        self.put("\" \"");
        match record.texts.get(Text::UserAgent) {
            Some(agent) => self.text(agent, Escape::Slash),
            None => self.put("-"),
        }
        self.out.push(b'"');
    }

    /// One object. What is not known is left out.
    fn json(mut self) {
        let Record { client, proxy, vip, timers, load, .. } = *self.record;
        let record = self.record;
        let Utc { year, month, day, hour, minute, second, ms } = self.at;
        self.put(format_args!(
            "{{\"time\":\"{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{ms:03}Z\",\"kind\":\"{}\"",
            if record.request.is_some() { "request" } else { "connection" }
        ));
        self.member("service", record.service.name.as_bytes());
        let (group, server) = server_of(record);
        self.member("group", group.as_bytes());
        if let Some(server) = server {
            self.member("server", server.as_bytes());
        }
        self.socket("client", client);
        if let Some(proxy) = proxy {
            self.socket("proxy", proxy);
        }
        self.socket("vip", vip);
        let [first, second] = record.code().map(char::from);
        if record.request.is_none() || !matches!(first, '-' | 'L') {
            self.put(format_args!(",\"termination\":\"{}\"", record.termination.label()));
        }
        self.put(format_args!(",\"code\":\"{first}{second}\""));
        for (name, timer) in [
            ("handshake_ms", timers.handshake_ms),
            ("request_ms", timers.request_ms),
            ("wait_ms", timers.wait_ms),
            ("connect_ms", timers.connect_ms),
            ("response_ms", timers.response_ms),
            ("data_ms", timers.data_ms),
            ("total_ms", Some(timers.total_ms)),
        ] {
            if let Some(ms) = timer {
                self.put(format_args!(",\"{name}\":{ms}"));
            }
        }
        self.put(format_args!(
            ",\"bytes_from_client\":{},\"bytes_to_client\":{},\"redispatches\":{}",
            record.bytes_from_client, record.bytes_to_client, record.redispatches
        ));
        self.put(format_args!(
            ",\"connections\":{{\"process\":{},\"service\":{},\"server\":{}}}",
            load.process, load.service, load.server
        ));
        if let Some(request) = record.request {
            self.request(request);
        }
        if let Some(tls) = record.tls {
            self.put(format_args!(
                ",\"tls\":{{\"version\":\"{}\",\"cipher\":\"{}\",\"resumed\":{}",
                tls.version, tls.cipher, tls.is_resumed
            ));
            if let Some(name) = record.texts.get(Text::ServerName) {
                self.member("server_name", name);
            }
            self.out.push(b'}');
        } else if let Some(name) = record.texts.get(Text::ServerName) {
            self.put(",\"tls\":{\"server_name\":\"");
            self.text(name, Escape::Json);
            self.put("\"}");
        }
        self.out.push(b'}');
    }

    fn request(&mut self, request: Request) {
        if request.status > 0 {
            self.put(format_args!(",\"status\":{}", request.status));
        }
        if !request.is_read {
            return;
        }
        let record = self.record;
        let (major, minor) = request.version;
        self.put(format_args!(",\"version\":\"HTTP/{major}.{minor}\""));
        for (name, text) in [("method", Text::Method), ("host", Text::Host), ("user_agent", Text::UserAgent)] {
            if let Some(value) = record.texts.get(text) {
                self.member(name, value);
            }
        }
        for (name, text) in [("target", Text::Target), ("referer", Text::Referer)] {
            if let Some(value) = record.texts.get(text) {
                self.put(format_args!(",\"{name}\":\""));
                self.target(value, Escape::Json);
                self.out.push(b'"');
            }
        }
    }

    fn member(&mut self, name: &str, value: &[u8]) {
        self.put(format_args!(",\"{name}\":\""));
        self.text(value, Escape::Json);
        self.out.push(b'"');
    }

    fn socket(&mut self, name: &str, socket: SocketAddr) {
        self.put(format_args!(",\"{name}\":\"{}\",\"{name}_port\":{}", socket.ip(), socket.port()));
    }
}

#[cfg(test)]
mod tests;
