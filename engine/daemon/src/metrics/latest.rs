//! The page of metrics that was written last: one is written at a time, and whoever asks meanwhile, or shortly after, gets the same. However many ask, and
//! hang up, it costs no more.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hyper::body::Bytes;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;

use crate::house::House;

/// How long a page is given again: nobody collects more often.
const FRESH: Duration = Duration::from_millis(500);

/// The last page, and whose turn it is to write the next.
pub(crate) struct Latest {
    turn: Arc<Semaphore>,
    page: Mutex<Option<(Instant, Bytes)>>,
}

impl Latest {
    pub(crate) fn new() -> Latest {
        Latest { turn: Arc::new(Semaphore::new(1)), page: Mutex::new(None) }
    }

    fn fresh(&self) -> Option<Bytes> {
        let page = self.page.lock().unwrap_or_else(PoisonError::into_inner);
        page.as_ref().filter(|(at, _)| at.elapsed() < FRESH).map(|(_, text)| text.clone())
    }

    fn write(&self, house: &House) -> Bytes {
        let text = Bytes::from(super::render(&house.status()));
        *self.page.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), text.clone()));
        text
    }
}

/// Written on this thread, for who has proven who he is.
pub(crate) async fn here(house: &House) -> Bytes {
    // Nobody closes it, and then it would be written at once.
    let _turn = house.metrics.turn.acquire().await;
    house.metrics.fresh().unwrap_or_else(|| house.metrics.write(house))
}

/// Written beside this thread, which others wait for; `None` once the process ends.
pub(super) async fn beside(house: &Arc<House>) -> Option<Bytes> {
    let turn = Arc::clone(&house.metrics.turn).acquire_owned().await.ok()?;
    if let Some(text) = house.metrics.fresh() {
        return Some(text);
    }
    let house = Arc::clone(house);
    let writing = spawn_blocking(move || {
        let text = house.metrics.write(&house);
        // Not before: a client that has hung up does not make room for another page.
        drop(turn);
        text
    });
    writing.await.ok()
}
