//! Who does too much of something loses his connection, and nobody else notices.

use super::frames::block;
use super::*;

/// Frames in one go: a client that floods does not wait.
const AT_ONCE: u32 = 50;

const HEADERS: u8 = 1;
const END: u8 = 1;
const WHOLE: u8 = 4;

fn framed(code: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    towpath_core::http2::frame::write_head(payload.len(), code, flags, stream, &mut out);
    out.extend_from_slice(payload);
    out
}

fn get(stream: u32) -> Vec<u8> {
    framed(HEADERS, END | WHOLE, stream, &block(&[&GET[..], &[(":path", "/slow/20")]].concat()))
}

#[test]
fn floods_are_ended_and_others_are_served() {
    in_lab(floods_are_ended_and_others_are_served, Topology::TwoArm, 1, |lab| {
        let stage = Stage::set(lab, "", "");
        let mut other = stage.open(lab);
        let reset = |number: u32| [get(2 * number + 3), framed(3, 0, 2 * number + 3, &[0, 0, 0, 8])].concat();
        let open = block(&[(":method", "POST"), (":scheme", "https"), (":path", "/up"), (":authority", "web.test")]);
        type Flood<'f> = (&'f str, Box<dyn Fn(u32) -> Vec<u8> + 'f>);
        let floods: Vec<Flood<'_>> = vec![
            ("reset_flood", Box::new(reset)),
            ("ping_flood", Box::new(|_| framed(6, 0, 0, &[0; 8]))),
            ("settings_flood", Box::new(|_| framed(4, 0, 0, &[]))),
            ("empty_data_flood", Box::new(|_| framed(0, 0, 1, &[]))),
            ("priority_flood", Box::new(|_| framed(2, 0, 1, &[0; 5]))),
            ("window_flood", Box::new(|_| framed(8, 0, 0, &[0, 0, 0, 1]))),
            (
                "continuation_flood",
                Box::new(|number| match number {
                    0 => framed(HEADERS, END, 3, &open),
                    _ => framed(9, 0, 3, &[]),
                }),
            ),
            (
                "block_too_long",
                Box::new(|number| match number {
                    0 => framed(HEADERS, END, 3, &open),
                    _ => framed(9, 0, 3, &[0; 16_384]),
                }),
            ),
        ];
        let mut served = 0;
        for (reason, make) in &floods {
            // Made before, because the relay reads no longer than two seconds on when it has ended a flood, and then resets: its GOAWAY would be lost.
            let frames: Vec<Vec<u8>> =
                (0..5_000 / AT_ONCE).map(|at| (at * AT_ONCE..(at + 1) * AT_ONCE).flat_map(make).collect()).collect();
            let mut client = stage.open(lab);
            client.request(
                1,
                &[(":method", "POST"), (":scheme", "https"), (":path", "/up"), (":authority", "a")],
                false,
            );
            // Until the relay has ended it.
            let _sent = frames.iter().try_for_each(|frames| client.send(frames));
            assert_eq!(client.go_away().1, ErrorCode::EnhanceYourCalm as u32, "{reason}");
            client.until_end();
            assert_eq!(stage.refused(reason), 1, "{:?}", stage.relay.service("web").refused_streams);
            served += 2;
            other.request(served - 1, &[&GET[..], &[(":path", "/bytes/5")]].concat(), true);
            assert_eq!(other.response(served - 1).status, 200, "{reason}");
        }
        drop(other);
        eventually("all have ended", || {
            let web = stage.relay.service("web");
            (web.terminations.values().sum::<u64>() == web.accepted).then_some(())
        });
        assert!(stage.relay.service("web").terminations["bad_frames"] >= floods.len() as u64);
        assert!(stage.asked().len() < 1_000, "a request that is taken back costs a connection at most");
        stage.relay.stop();
    });
}

#[test]
fn a_client_that_reads_nothing_is_ended_after_its_time() {
    in_lab(a_client_that_reads_nothing_is_ended_after_its_time, Topology::TwoArm, 1, |lab| {
        let stage = Stage::set(lab, "idle_timeout = \"2s\"", "");
        let mut client = stage.open(lab);
        client.open_window(0, (1 << 31) - 1 - 65_535);
        for stream in (1..40).step_by(2) {
            client.request(stream, &[&GET[..], &[(":path", "/bytes/99000000")]].concat(), true);
            client.open_window(stream, 1 << 30);
        }
        let memory = stage.relay.memory_bytes();
        eventually("its connection has ended", || {
            let web = stage.relay.service("web");
            (web.terminations.values().sum::<u64>() == web.accepted).then_some(())
        });
        assert!(stage.relay.memory_bytes() < memory + (32 << 20), "{} {memory}", stage.relay.memory_bytes());
        assert!(stage.relay.service("web").terminations["idle_timed_out"] > 0);
        stage.relay.stop();
    });
}
