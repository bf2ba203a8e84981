//! `POST /v1/capture`: frames of a service, as a file in the pcapng format.

use std::time::Duration;

use hyper::Request;
use hyper::body::Incoming;

use super::answer::{Answer, file};
use super::route::{Asked, read_body};
use super::sessions::refuse;
use crate::capture::{CAPTURE_SECONDS_MAX, CaptureBody};

/// What an answer takes beside the capture: 32 MiB over the network.
const SLACK: Duration = Duration::from_secs(30);
/// As of Wireshark; there is none that is registered.
const CONTENT_TYPE: &str = "application/x-pcapng";

/// Answers when the capture is over.
pub(super) async fn capture(request: Request<Incoming>, asked: &Asked<'_>) -> Answer {
    let body: CaptureBody = match read_body(request).await {
        Ok(body) => body,
        Err(answer) => return answer,
    };
    asked.deadline.put_off(Duration::from_secs(body.seconds.min(CAPTURE_SECONDS_MAX)) + SLACK);
    match asked.house.capture(&body, &asked.who.to_string()).await {
        Ok(captured) => file(CONTENT_TYPE, captured),
        Err(error) => refuse(&error),
    }
}
