//! Points in time as text, in UTC: a line is to mean the same wherever it is read.

/// A point in time by the calendar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Utc {
    /// From 1970 on.
    pub year: u64,
    /// 1 to 12.
    pub month: u8,
    /// 1 to 31.
    pub day: u8,
    /// 0 to 23.
    pub hour: u8,
    /// 0 to 59.
    pub minute: u8,
    /// 0 to 59.
    pub second: u8,
    /// 0 to 999.
    pub ms: u16,
}

impl Utc {
    /// The month as English logs have it.
    pub fn month_name(&self) -> &'static str {
        const NAMES: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
        NAMES[usize::from(self.month.clamp(1, 12)) - 1]
    }
}

/// By the Gregorian calendar, from milliseconds since 1970.
///
/// Days are counted from 1 March of the year 0, so that a leap day is the last of its year (Hinnant, "chrono-compatible low-level date algorithms").
pub fn utc(unix_ms: u64) -> Utc {
    const DAY_MS: u64 = 86_400_000;
    /// From 1 March 0000 until 1 January 1970.
    const BEFORE_1970: u64 = 719_468;
    const ERA_DAYS: u64 = 146_097;
    let (days, ms) = (unix_ms / DAY_MS + BEFORE_1970, unix_ms % DAY_MS);
    let (era, day) = (days / ERA_DAYS, days % ERA_DAYS);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    // From March on, months have 153 days in five.
    let month = (5 * day + 2) / 153;
    let seconds = ms / 1000;
    Utc {
        year: era * 400 + year + u64::from(month >= 10),
        month: if month < 10 { month + 3 } else { month - 9 } as u8,
        day: (day - (153 * month + 2) / 5 + 1) as u8,
        hour: (seconds / 3600) as u8,
        minute: (seconds / 60 % 60) as u8,
        second: (seconds % 60) as u8,
        ms: (ms % 1000) as u16,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_those_of_the_calendar() {
        for (unix_s, text) in [
            (0, "1970-01-01 00:00:00"),
            (951_782_399, "2000-02-28 23:59:59"),
            (951_782_400, "2000-02-29 00:00:00"),
            (951_868_800, "2000-03-01 00:00:00"),
            (1_709_164_800, "2024-02-29 00:00:00"),
            (1_735_689_599, "2024-12-31 23:59:59"),
            (1_795_345_323, "2026-11-22 11:02:03"),
            (4_107_542_400, "2100-03-01 00:00:00"),
        ] {
            let Utc { year, month, day, hour, minute, second, ms } = utc(unix_s * 1000 + 7);
            assert_eq!(format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}"), text);
            assert_eq!(ms, 7);
        }
    }

    #[test]
    fn every_day_follows_the_one_before() {
        let mut before = utc(0);
        for day in 1..60_000 {
            let next = utc(day * 86_400_000);
            let follows = (next.day == before.day + 1 && next.month == before.month)
                || (next.day == 1 && (next.month == before.month + 1 || (next.month == 1 && before.month == 12)));
            assert!(follows && before.day >= if next.day == 1 { 28 } else { 1 }, "{before:?} {next:?}");
            before = next;
        }
    }
}
