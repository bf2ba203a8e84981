//! When somebody is told of what has changed: what comes together goes together, and messages keep their distance.
//!
//! A queue per receiver. It holds what waits, says when the next message is due and of what it is made, and takes back what could not be delivered.

use std::collections::VecDeque;

use crate::time::Now;

/// What may wait for one receiver: every server of a large site going down and coming back. The oldest gives way.
pub const NOTICES_MAX: usize = 1024;
/// What one message holds at most; the rest waits for the next.
pub const MESSAGE_NOTICES_MAX: usize = 128;
/// Shortest wait after a message that was not delivered.
const RETRY_MIN_MS: u64 = 1_000;
/// Longest wait after messages that were not delivered.
pub const BACKOFF_MAX_MS: u64 = 5 * 60_000;

/// How messages follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rhythm {
    /// How long the first notice waits for others.
    pub batch_ms: u64,
    /// From the end of one message to the begin of the next, at least.
    pub interval_ms: u64,
}

/// What waits for one receiver. One message is under way at a time: [`Notices::take`] lets go of none before the last one was
/// [`Notices::delivered`] or has [`Notices::failed`].
#[derive(Clone, Debug)]
pub struct Notices<T> {
    rhythm: Rhythm,
    /// Oldest first, each with the time it came.
    waiting: VecDeque<(Now, T)>,
    /// Those that gave way since a message was last delivered.
    dropped: u64,
    /// No message begins before.
    free_at: Now,
    /// Messages in a row that were not delivered.
    failures: u32,
    /// What the next message holds at most: less where the receiver has found one too much.
    size_max: usize,
    is_under_way: bool,
}

/// What goes to the receiver at once.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "a message that nobody delivers has to be given back"]
pub struct Message<T> {
    notices: Vec<(Now, T)>,
    /// Notices that the receiver will never see: they gave way before this message.
    pub dropped: u64,
}

impl<T> Message<T> {
    /// Oldest first, never empty.
    pub fn notices(&self) -> impl ExactSizeIterator<Item = &T> {
        self.notices.iter().map(|(_, notice)| notice)
    }
}

impl<T> Notices<T> {
    /// Nothing waits, and the first message may begin as soon as something does.
    pub fn new(rhythm: Rhythm) -> Notices<T> {
        Notices {
            rhythm,
            waiting: VecDeque::new(),
            dropped: 0,
            free_at: Now(0),
            failures: 0,
            size_max: MESSAGE_NOTICES_MAX,
            is_under_way: false,
        }
    }

    /// Another rhythm, from the next message on.
    pub fn set_rhythm(&mut self, rhythm: Rhythm) {
        self.rhythm = rhythm;
    }

    /// The receiver is another now: what the one before did not take is tried as soon as it would be by now.
    pub fn forgive(&mut self, now: Now) {
        self.failures = 0;
        self.size_max = MESSAGE_NOTICES_MAX;
        self.free_at = self.free_at.min(now);
    }

    /// One more; says whether the oldest had to give way.
    pub fn offer(&mut self, notice: T, now: Now) -> Room {
        self.waiting.push_back((now, notice));
        self.make_room()
    }

    /// When the next message is due; `None` = there is nothing to tell, or the last message is still under way.
    pub fn due(&self) -> Option<Now> {
        let (first_at, _) = self.waiting.front()?;
        if self.is_under_way {
            return None;
        }
        // One that fills a message has nobody to wait for.
        let batched = match self.waiting.len() >= self.size_max {
            true => Now(0),
            false => *first_at + self.rhythm.batch_ms,
        };
        Some(batched.max(self.free_at))
    }

    /// The message that is due at this time, if one is.
    pub fn take(&mut self, now: Now) -> Option<Message<T>> {
        self.due().filter(|due| *due <= now)?;
        self.take_at_once()
    }

    /// The next message without a wait: at the end of the process.
    pub fn take_at_once(&mut self) -> Option<Message<T>> {
        if self.is_under_way || self.waiting.is_empty() {
            return None;
        }
        self.is_under_way = true;
        let count = self.waiting.len().min(self.size_max);
        let notices = self.waiting.drain(..count).collect();
        Some(Message { notices, dropped: std::mem::take(&mut self.dropped) })
    }

    /// The message that was taken has arrived.
    pub fn delivered(&mut self, now: Now) {
        self.is_under_way = false;
        self.failures = 0;
        self.size_max = self.size_max.saturating_mul(2).min(MESSAGE_NOTICES_MAX);
        self.free_at = now + self.rhythm.interval_ms;
    }

    /// The receiver will never take the message that was taken: the next one holds half as much, for it may have been too long. A notice that it does
    /// not want even alone is dropped. Says how many will never be told.
    pub fn refused(&mut self, message: Message<T>, now: Now) -> Room {
        let count = message.notices.len();
        self.size_max = (count / 2).max(1);
        if count > 1 {
            self.failures = 0;
            return self.failed(message, now);
        }
        self.dropped = self.dropped.saturating_add(message.dropped).saturating_add(1);
        self.is_under_way = false;
        self.failures = 0;
        self.free_at = now + self.rhythm.interval_ms.max(RETRY_MIN_MS);
        Room::Made(1)
    }

    /// The message that was taken has not arrived: what it held waits again, in front. The next try comes after twice the wait of the last, within
    /// [`BACKOFF_MAX_MS`]. Says whether the oldest had to give way.
    pub fn failed(&mut self, message: Message<T>, now: Now) -> Room {
        self.is_under_way = false;
        self.dropped = self.dropped.saturating_add(message.dropped);
        for notice in message.notices.into_iter().rev() {
            self.waiting.push_front(notice);
        }
        // Even where messages need not keep a distance, one that fails is not sent again at once.
        let wait_ms = self.rhythm.interval_ms.max(RETRY_MIN_MS);
        let longest_ms = BACKOFF_MAX_MS.max(wait_ms);
        self.free_at = now + wait_ms.saturating_mul(1 << self.failures.min(16)).min(longest_ms);
        self.failures = self.failures.saturating_add(1);
        self.make_room()
    }

    /// Notices that wait, without those under way.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    fn make_room(&mut self) -> Room {
        let over = self.waiting.len().saturating_sub(NOTICES_MAX);
        self.waiting.drain(..over);
        self.dropped = self.dropped.saturating_add(over as u64);
        if over == 0 { Room::Enough } else { Room::Made(over) }
    }
}

/// Whether there was room for a notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// Yes.
    Enough,
    /// So many older ones gave way, and will never be told.
    Made(usize),
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RHYTHM: Rhythm = Rhythm { batch_ms: 2_000, interval_ms: 10_000 };

    fn told(message: &Message<u32>) -> Vec<u32> {
        message.notices().copied().collect()
    }

    #[test]
    fn what_comes_together_goes_together_and_what_comes_later_waits_its_distance() {
        let mut notices = Notices::new(RHYTHM);
        assert_eq!(notices.due(), None);
        notices.offer(1, Now(100));
        notices.offer(2, Now(1_500));
        assert_eq!(notices.due(), Some(Now(2_100)));
        assert_eq!(notices.take(Now(2_099)), None);
        let message = notices.take(Now(2_100)).unwrap();
        assert_eq!(told(&message), [1, 2]);
        notices.offer(3, Now(2_200));
        assert_eq!(notices.due(), None, "one message at a time");
        notices.delivered(Now(2_400));
        assert_eq!(notices.due(), Some(Now(12_400)));
        assert_eq!(told(&notices.take(Now(12_400)).unwrap()), [3]);
    }

    #[test]
    fn a_message_that_failed_comes_again_later_and_later_with_what_came_since() {
        let mut notices = Notices::new(RHYTHM);
        notices.offer(0, Now(0));
        let mut now = Now(2_000);
        for (number, wait_ms) in (1..).zip([10_000, 20_000, 40_000, 80_000, 160_000, 300_000, 300_000]) {
            let message = notices.take(now).unwrap();
            assert_eq!(told(&message), (0..number).collect::<Vec<_>>());
            notices.offer(number, now);
            assert_eq!(notices.failed(message, now), Room::Enough);
            assert_eq!(notices.due(), Some(now + wait_ms));
            now = now + wait_ms;
        }
        let _arrives = notices.take(now).unwrap();
        notices.delivered(now);
        notices.offer(9, now);
        let message = notices.take(now + 10_000).unwrap();
        notices.failed(message, now + 10_000);
        assert_eq!(notices.due(), Some(now + 20_000), "one that arrived makes the next wait short again");
    }

    #[test]
    fn what_is_too_long_comes_in_pieces_and_what_nobody_wants_holds_nothing_up() {
        let mut notices = Notices::new(Rhythm { batch_ms: 0, interval_ms: 0 });
        (0..5).for_each(|number| assert_eq!(notices.offer(number, Now(0)), Room::Enough));
        // A receiver that takes two at most, and never the third.
        let (mut heard, mut now, mut lost) = (Vec::new(), Now(0), 0);
        while let Some(due) = notices.due() {
            now = now.max(due);
            let message = notices.take(now).unwrap();
            if message.notices().len() > 2 || told(&message).contains(&2) {
                if let Room::Made(count) = notices.refused(message, now) {
                    lost += count;
                }
            } else {
                heard.extend(told(&message));
                notices.delivered(now);
            }
        }
        assert_eq!((heard, lost), (vec![0, 1, 3, 4], 1));
        assert!(now.0 < 10 * RETRY_MIN_MS, "{now:?}");
    }

    #[test]
    fn another_receiver_does_not_wait_for_what_the_one_before_has_missed() {
        let mut notices = Notices::new(RHYTHM);
        notices.offer(1, Now(0));
        let mut now = Now(2_000);
        for _ in 0..6 {
            let message = notices.take(now).unwrap();
            notices.failed(message, now);
            now = notices.due().unwrap();
        }
        let message = notices.take(now).unwrap();
        notices.failed(message, now);
        notices.forgive(now + 5);
        assert_eq!(notices.due(), Some(now + 5));
    }

    #[test]
    fn a_full_message_waits_for_nobody_and_the_rest_is_for_the_next() {
        let mut notices = Notices::new(Rhythm { batch_ms: 60_000, interval_ms: 0 });
        for number in 0..MESSAGE_NOTICES_MAX as u32 + 1 {
            notices.offer(number, Now(5));
        }
        let message = notices.take(Now(5)).unwrap();
        assert_eq!(message.notices().len(), MESSAGE_NOTICES_MAX);
        notices.delivered(Now(5));
        assert_eq!(notices.due(), Some(Now(60_005)));
        assert_eq!(told(&notices.take_at_once().unwrap()), [MESSAGE_NOTICES_MAX as u32]);
    }

    #[test]
    fn the_oldest_gives_way_and_the_receiver_hears_of_how_many() {
        let mut notices = Notices::new(Rhythm { batch_ms: 0, interval_ms: 0 });
        for number in 0..NOTICES_MAX as u32 {
            assert_eq!(notices.offer(number, Now(0)), Room::Enough);
        }
        assert_eq!(notices.offer(9_999, Now(1)), Room::Made(1));
        let message = notices.take(Now(1)).unwrap();
        assert_eq!((message.dropped, told(&message)[0]), (1, 1));
        for number in 0..MESSAGE_NOTICES_MAX as u32 {
            notices.offer(number, Now(2));
        }
        assert_eq!(notices.failed(message, Now(2)), Room::Made(MESSAGE_NOTICES_MAX));
        let message = notices.take(Now(2) + BACKOFF_MAX_MS).unwrap();
        assert_eq!(message.dropped, 1 + MESSAGE_NOTICES_MAX as u64, "told once, with the first message that arrives");
        notices.delivered(Now(3));
        assert_eq!(notices.take_at_once().unwrap().dropped, 0);
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Offer,
        Wait(u64),
        Deliver,
        Fail,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => Just(Step::Offer),
            2 => (0_u64..30_000).prop_map(Step::Wait),
            1 => Just(Step::Deliver),
            1 => Just(Step::Fail),
        ]
    }

    proptest! {
        /// Each notice is told once and in order, or counted as dropped; messages keep their distance.
        #[test]
        fn nothing_is_lost_told_twice_or_out_of_order(steps in prop::collection::vec(step(), 1..4_000)) {
            let mut notices = Notices::new(RHYTHM);
            let (mut now, mut offered, mut next, mut dropped) = (Now(0), 0_u64, 0_u64, 0_u64);
            let mut last_delivery: Option<Now> = None;
            for step in steps.into_iter().chain([Step::Wait(BACKOFF_MAX_MS), Step::Deliver]) {
                match step {
                    Step::Offer => {
                        notices.offer(offered, now);
                        offered += 1;
                    }
                    Step::Wait(ms) => now = now + ms,
                    Step::Deliver => {
                        let Some(message) = notices.take(now) else { continue };
                        if let Some(last) = last_delivery {
                            prop_assert!(now.ms_since(last) >= RHYTHM.interval_ms);
                        }
                        dropped += message.dropped;
                        for &notice in message.notices() {
                            prop_assert!(notice >= next);
                            next = notice + 1;
                        }
                        notices.delivered(now);
                        last_delivery = Some(now);
                        prop_assert_eq!(next + notices.len() as u64 + notices.dropped, offered);
                    }
                    Step::Fail => {
                        let Some(message) = notices.take(now) else { continue };
                        notices.failed(message, now);
                    }
                }
                prop_assert!(notices.len() <= NOTICES_MAX);
            }
            prop_assert!(dropped <= offered);
        }
    }
}
