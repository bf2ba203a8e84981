//! Windows of both directions, turns of the streams, and ends of responses.

use super::*;
use towpath_core::http2::Progress;

fn status(code: &str) -> Vec<u8> {
    fields(&[(":status", code)])
}

/// Bytes of DATA by stream, and the streams that ended.
fn sent(frames: &[(FrameHead, Vec<u8>)]) -> (Vec<(u32, usize)>, Vec<u32>) {
    let data = frames.iter().filter(|(head, _)| head.code == DATA).map(|(head, _)| (head.stream, head.len)).collect();
    let ended = frames.iter().filter(|(head, _)| matches!(head.code, DATA | HEADERS) && head.has(END));
    (data, ended.map(|(head, _)| head.stream).collect())
}

fn window(stream: u32, bytes: u32) -> Vec<u8> {
    frame(WINDOW, 0, stream, &bytes.to_be_bytes())
}

#[test]
fn responses_leave_as_windows_allow_and_in_turn() {
    let mut connection = opened();
    play(&mut connection, &[get(1), get(3), get(5), window(0, 1_000_000)].concat());
    for stream in [1, 3, 5] {
        connection.respond(stream, &status("200"), false);
        connection.send(stream, &vec![0; 70_000]);
        connection.finish(stream, None);
    }
    let (data, ended) = sent(&written(&mut connection));
    assert_eq!(data[..4], [(1, 16_384), (3, 16_384), (5, 16_384), (1, 16_384)], "each in its turn");
    assert_eq!(data.iter().filter(|(stream, _)| *stream == 3).map(|(_, len)| len).sum::<usize>(), 65_535);
    assert!(ended.is_empty() && !connection.has_news());
    play(&mut connection, &window(3, 10_000));
    assert_eq!(sent(&written(&mut connection)), (vec![(3, 4_465)], vec![3]));
    assert!(!connection.has(3) && connection.has(1));
    // For those that are open as well; what one has sent too much it sends later (RFC 9113 §6.9.2).
    play(&mut connection, &frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]));
    play(&mut connection, &window(1, 65_535));
    assert_eq!(sent(&written(&mut connection)).0, []);
    play(&mut connection, &window(1, 5_000));
    assert_eq!(sent(&written(&mut connection)), (vec![(1, 4_465)], vec![1]));
}

#[test]
fn the_window_of_the_connection_holds_up_all() {
    let mut connection = opened();
    play(&mut connection, &[get(1), get(3)].concat());
    for stream in [1, 3] {
        connection.respond(stream, &status("200"), false);
        connection.send(stream, &vec![0; 50_000]);
    }
    let mut progress = Vec::new();
    let mut out = Vec::new();
    connection.write(1 << 20, &mut out, &mut progress);
    let (data, _) = sent(&frames(&out));
    assert_eq!(data.iter().map(|(_, len)| len).sum::<usize>(), 65_535);
    assert!(!progress.contains(&Progress { stream: 1, drained: true }) && !connection.has_news());
    progress.clear();
    play(&mut connection, &window(0, 1 << 20));
    connection.write(1 << 20, &mut out, &mut progress);
    assert!([1, 3].iter().all(|&stream| progress.contains(&Progress { stream, drained: true })), "{progress:?}");
    assert!(connection.streams() == 2, "they have not ended");
}

#[test]
fn frames_fit_into_the_room_that_there_is() {
    let mut connection = opened();
    play(&mut connection, &get(1));
    connection.respond(1, &status("200"), false);
    connection.send(1, &[7; 5_000]);
    let mut out = Vec::new();
    connection.write(1_000, &mut out, &mut Vec::new());
    assert!((990..=1_000).contains(&out.len()), "{}", out.len());
    out.clear();
    connection.write(1 << 20, &mut out, &mut Vec::new());
    assert!(sent(&frames(&out)).0[0].1 > 4_000);
}

#[test]
fn a_client_gets_its_windows_back_when_bytes_are_taken() {
    let mut connection = opened();
    play(&mut connection, &post(1, &[]));
    for _ in 0..4 {
        play(&mut connection, &frame(DATA, 0, 1, &[0; 16_000]));
    }
    assert!(written(&mut connection).is_empty(), "nothing was taken");
    connection.taken(1, 20_000);
    assert!(written(&mut connection).is_empty(), "too little to tell");
    connection.taken(1, 20_000);
    let told: Vec<_> = written(&mut connection).iter().map(|(head, payload)| (head.stream, payload.clone())).collect();
    let bytes = 40_000_u32.to_be_bytes().to_vec();
    assert_eq!(told, [(0, bytes.clone()), (1, bytes)]);
    // No more is believed than was sent.
    connection.taken(1, 1_000_000);
    let said = play(&mut connection, &(0..6).flat_map(|_| frame(DATA, 0, 1, &[0; 16_000])).collect::<Vec<u8>>());
    assert_eq!(said.last().map(String::as_str), Some("failed flow_control"));
}

#[test]
fn streams_that_end_leave_the_window_of_the_connection_to_others() {
    let mut connection = opened();
    for number in 0..100 {
        let stream = 2 * number + 1;
        play(&mut connection, &post(stream, &[]));
        for _ in 0..4 {
            let said = play(&mut connection, &frame(DATA, 0, stream, &[0; 16_000]));
            assert_eq!(said.len(), 1, "{said:?}");
        }
        // Some by the client, some by us, and some with bytes on their way.
        match number % 3 {
            0 => assert_eq!(
                play_at(&mut connection, &frame(RESET, 0, stream, &[0; 4]), START + 1_000 * u64::from(number)),
                [format!("{stream} gone")]
            ),
            1 => connection.reset(stream, ErrorCode::Cancel),
            _ => {
                connection.reset(stream, ErrorCode::Cancel);
                assert!(play(&mut connection, &frame(DATA, 0, stream, &[0; 1_000])).is_empty());
            }
        }
        written(&mut connection);
    }
}

#[test]
fn an_early_response_tells_the_client_to_stop() {
    let mut connection = opened();
    play(&mut connection, &[post(1, &[]), frame(DATA, 0, 1, b"some")].concat());
    connection.respond(1, &status("413"), false);
    connection.send(1, b"large\n");
    connection.finish(1, None);
    let left = written(&mut connection);
    assert_eq!(left.iter().map(|(head, _)| head.code).collect::<Vec<_>>(), [HEADERS, DATA, RESET]);
    assert_eq!(errors(&left), [(1, ErrorCode::NoError as u32)]);
    // What is still on its way is nobody's.
    assert!(play(&mut connection, &[frame(DATA, END, 1, b"rest"), frame(RESET, 0, 1, &[0; 4])].concat()).is_empty());
    assert_eq!(connection.streams(), 0);
}

#[test]
fn trailers_and_interim_heads_stand_where_they_belong() {
    let mut connection = opened();
    play(&mut connection, &get(1));
    connection.respond(1, &status("100"), false);
    connection.respond(1, &status("200"), false);
    connection.send(1, b"body");
    connection.finish(1, Some(fields(&[("x-sum", "1")])));
    let left = written(&mut connection);
    let kinds: Vec<_> = left.iter().map(|(head, _)| (head.code, head.has(END))).collect();
    assert_eq!(kinds, [(HEADERS, false), (HEADERS, false), (DATA, false), (HEADERS, true)]);
    assert_eq!(left[0].1[0], 0x20, "no table is used, and the first block says so");
    assert_eq!(connection.streams(), 0);
}

#[test]
fn a_stream_that_goes_amid_a_frame_takes_its_rest_along() {
    let padded = frame(DATA, frame::PADDED, 1, b"\x02some body of somebody elsePP");
    for cut in HEAD_BYTES..padded.len() {
        let mut connection = opened();
        play(&mut connection, &post(1, &[]));
        play(&mut connection, &padded[..cut]);
        connection.reset(1, ErrorCode::Cancel);
        assert_eq!(play(&mut connection, &[&padded[cut..], &get(3)].concat()), ["3 GET / HTTP/1.1."], "cut at {cut}");
    }
}

#[test]
fn a_head_with_trailers_is_out_when_they_are() {
    let mut connection = opened();
    play(&mut connection, &get(1));
    connection.respond(1, &status("200"), false);
    connection.finish(1, Some(fields(&[("x-sum", "1")])));
    let (mut out, mut progress) = (Vec::new(), Vec::new());
    connection.write(1, &mut out, &mut progress);
    assert!(progress.is_empty(), "{progress:?}");
    connection.write(1 << 20, &mut out, &mut progress);
    assert_eq!(progress, [Progress { stream: 1, drained: true }]);
}

#[test]
fn streams_refused_by_others_for_what_clients_bring_are_metered() {
    let mut connection = opened();
    let failed = (0..300).find_map(|number| {
        play(&mut connection, &get(2 * number + 1));
        let failed = connection.refuse_stream(2 * number + 1, ErrorCode::Http11Required, START);
        written(&mut connection);
        failed
    });
    assert_eq!(failed, Some(BadStream::ResetFlood));
}

#[test]
fn what_is_said_for_a_stream_that_has_gone_is_dropped() {
    let mut connection = opened();
    play(&mut connection, &[get(1), frame(RESET, 0, 1, &[0; 4])].concat());
    connection.respond(1, &status("200"), false);
    connection.send(1, b"body");
    connection.finish(1, None);
    connection.taken(1, 100);
    connection.reset(1, ErrorCode::Internal);
    assert!(written(&mut connection).is_empty());
}
