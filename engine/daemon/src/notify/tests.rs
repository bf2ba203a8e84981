use towpath_config::model::Webhook;

use super::*;

fn settings(events: &[EventKind], port: u16) -> Notify {
    Notify {
        command: None,
        webhook: Some(Webhook {
            host: "127.0.0.1".to_owned(),
            port,
            authority: format!("127.0.0.1:{port}"),
            path: "/secret".to_owned(),
            authorities: None,
            token_file: None,
        }),
        events: events.to_vec(),
        batch_ms: 0,
        interval_ms: 60_000,
        timeout_ms: 5_000,
    }
}

fn waiting(notifier: &Notifier) -> Vec<u64> {
    notifier.status().iter().map(|status| status.waiting).collect()
}

#[test]
fn only_what_was_asked_for_waits_and_a_reload_keeps_it() {
    let notifier = Notifier::new("1.0");
    let health = |from, to| Event::now(EventKind::Health, from, to, "");
    notifier.offer(&health("up", "down"));
    assert_eq!(waiting(&notifier), [0; 0], "nobody is told");
    notifier.follow(Some(&settings(&[EventKind::Health], 1)));
    notifier.offer(&health("up", "down"));
    notifier.offer(&health("unknown", "up"));
    notifier.offer(&health("unknown", "down"));
    notifier.offer(&Event::now(EventKind::Phase, "running", "draining", ""));
    assert_eq!(waiting(&notifier), [2], "a start is not told, a server that is down from the start is");
    notifier.follow(Some(&settings(&[EventKind::Phase], 2)));
    notifier.offer(&health("down", "up"));
    notifier.offer(&Event::now(EventKind::Phase, "running", "draining", ""));
    assert_eq!(waiting(&notifier), [3]);
    notifier.follow(None);
    assert_eq!(waiting(&notifier), [0; 0]);
}

#[test]
fn what_nobody_takes_waits_for_another_try_and_is_counted_at_the_end() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = closed.local_addr().unwrap().port();
    drop(closed);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let notifier = Arc::new(Notifier::new("1.0"));
    notifier.follow(Some(&settings(&EventKind::ALL, port)));
    let status = runtime.block_on(async {
        let receivers = notifier.serve();
        notifier.offer(&Event::now(EventKind::Health, "up", "down", ""));
        let told = loop {
            let [status] = <[NotifyStatus; 1]>::try_from(notifier.status()).unwrap();
            if status.failed > 0 {
                break status;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        };
        assert_eq!((told.failed, told.dropped, told.waiting), (1, 0, 1), "the next try is a minute away");
        assert_eq!(told.trouble, Some(format!("127.0.0.1:{port}: connection refused")));
        receivers.finish().await;
        notifier.desks[1].lock().dropped
    });
    assert_eq!(status, 1);
}
