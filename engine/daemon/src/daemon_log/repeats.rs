//! Lines that come again and again: the first few are told at once, the others are summed up. Pure: time is an argument.

/// How long others like it are summed up.
pub(super) const WINDOW_MS: u64 = 10_000;
/// So many are told before the sum begins: an operator who does the same again is to see the same answer.
const TOLD_MAX: u8 = 5;
/// Different lines that are watched; beyond them the one whose sum is due first gives way.
const WATCHED_MAX: usize = 64;

/// Whether a line is to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Offer {
    /// It is: there were few like it lately.
    New,
    /// It was counted.
    Repeat,
}

/// A line that stands for several.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sum<L> {
    pub(super) level: L,
    pub(super) text: String,
}

#[derive(Debug)]
struct Watched<L> {
    level: L,
    text: String,
    /// Since the first line, or the last sum.
    since_ms: u64,
    /// Since then, lines that were told, …
    told: u8,
    /// … and those that were not.
    more: u64,
}

/// Lines of the last seconds.
#[derive(Debug)]
pub(super) struct Repeats<L> {
    watched: Vec<Watched<L>>,
}

impl<L: Copy + PartialEq> Repeats<L> {
    pub(super) fn new() -> Repeats<L> {
        Repeats { watched: Vec::with_capacity(WATCHED_MAX) }
    }

    /// Takes notice of a line; one that had to give way for it comes with its sum.
    pub(super) fn offer(&mut self, level: L, text: &str, now_ms: u64) -> (Offer, Option<Sum<L>>) {
        let known = self.watched.iter_mut().find(|watched| watched.level == level && watched.text == text);
        match known {
            Some(watched) if watched.told < TOLD_MAX => {
                watched.told += 1;
                return (Offer::New, None);
            }
            Some(watched) => {
                watched.more += 1;
                return (Offer::Repeat, None);
            }
            None => {}
        }
        let mut pushed_out = None;
        if self.watched.len() == WATCHED_MAX
            && let Some(first) = (0..WATCHED_MAX).min_by_key(|&at| self.watched[at].since_ms)
        {
            pushed_out = self.watched.swap_remove(first).sum(now_ms);
        }
        self.watched.push(Watched { level, text: text.to_owned(), since_ms: now_ms, told: 1, more: 0 });
        (Offer::New, pushed_out)
    }

    /// The sums whose time has come. What did not come again is forgotten, the others are watched on.
    pub(super) fn due(&mut self, now_ms: u64) -> Vec<Sum<L>> {
        let mut sums = Vec::new();
        self.watched.retain_mut(|watched| {
            if now_ms.saturating_sub(watched.since_ms) < WINDOW_MS {
                return true;
            }
            let sum = watched.sum(now_ms);
            let goes_on = sum.is_some();
            sums.extend(sum);
            (watched.since_ms, watched.more) = (now_ms, 0);
            goes_on
        });
        sums
    }

    /// When sums are due next.
    pub(super) fn next_due_ms(&self) -> Option<u64> {
        self.watched.iter().map(|watched| watched.since_ms + WINDOW_MS).min()
    }

    /// All sums, whenever they are due: the end has come.
    pub(super) fn finish(&mut self, now_ms: u64) -> Vec<Sum<L>> {
        self.watched.drain(..).filter_map(|watched| watched.sum(now_ms)).collect()
    }
}

impl<L: Copy> Watched<L> {
    fn sum(&self, now_ms: u64) -> Option<Sum<L>> {
        // Of one that came within a second, too, something has to be said.
        let seconds = now_ms.saturating_sub(self.since_ms).div_ceil(1000).max(1);
        (self.more > 0)
            .then(|| Sum { level: self.level, text: format!("{} … {} more in {seconds} s", self.text, self.more) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(sums: Vec<Sum<u8>>) -> Vec<String> {
        sums.into_iter().map(|sum| sum.text).collect()
    }

    #[test]
    fn the_first_few_are_told_and_the_others_are_summed_up() {
        let mut repeats = Repeats::new();
        for at in 0..TOLD_MAX.into() {
            assert_eq!(repeats.offer(1u8, "no descriptor", at), (Offer::New, None));
        }
        for at in 1..=213 {
            assert_eq!(repeats.offer(1, "no descriptor", at * 10), (Offer::Repeat, None));
        }
        assert_eq!(repeats.offer(2, "no descriptor", 500).0, Offer::New, "of another level");
        assert_eq!(repeats.offer(1, "no socket", 500).0, Offer::New);
        assert_eq!(repeats.next_due_ms(), Some(WINDOW_MS));
        assert!(repeats.due(WINDOW_MS - 1).is_empty());
        assert_eq!(texts(repeats.due(WINDOW_MS)), ["no descriptor … 213 more in 10 s"]);
        // It goes on, and then it does not.
        assert_eq!(repeats.offer(1, "no descriptor", WINDOW_MS + 5).0, Offer::Repeat);
        assert_eq!(texts(repeats.due(2 * WINDOW_MS)), ["no descriptor … 1 more in 10 s"]);
        assert!(repeats.due(3 * WINDOW_MS).is_empty());
        assert_eq!(repeats.next_due_ms(), None, "nobody is watched any more");
        assert_eq!(repeats.offer(1, "no descriptor", 4 * WINDOW_MS).0, Offer::New);
    }

    #[test]
    fn who_gives_way_and_the_end_tell_what_they_have() {
        let mut repeats = Repeats::new();
        for at in 0..WATCHED_MAX as u64 {
            assert_eq!(repeats.offer(0u8, &format!("line {at}"), at), (Offer::New, None));
        }
        for text in ["line 0", "line 7"] {
            let told = (0..TOLD_MAX).filter(|_| repeats.offer(0, text, 70).0 == Offer::New).count();
            assert_eq!(told, usize::from(TOLD_MAX) - 1);
        }
        let (offer, pushed_out) = repeats.offer(0, "one more", 80);
        assert_eq!(offer, Offer::New);
        assert_eq!(pushed_out.map(|sum| sum.text).as_deref(), Some("line 0 … 1 more in 1 s"));
        assert_eq!(repeats.watched.len(), WATCHED_MAX);
        assert_eq!(texts(repeats.finish(90)), ["line 7 … 1 more in 1 s"]);
    }
}
