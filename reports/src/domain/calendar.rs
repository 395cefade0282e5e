//! The days of the ledger: when an instant counts, in its time zone.

use std::fmt;

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{Span, Timestamp};

const US_PER_DAY: i64 = 86_400_000_000;
const EPOCH: Date = Date::constant(1970, 1, 1);

/// A day, counted from 1970-01-01, which is 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Day(i64);

impl Day {
    /// As it is stored.
    pub const fn number(self) -> i64 {
        self.0
    }

    /// As it was stored.
    pub const fn of_number(number: i64) -> Self {
        Self(number)
    }

    /// The day in UTC of an instant, in Unix microseconds: later instants never have an earlier one.
    pub const fn utc(us: i64) -> Self {
        Self(us.div_euclid(US_PER_DAY))
    }

    /// A date such as `2026-11-25`, from year 1 on. None for anything else, and for a day that there is not.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('-');
        let (year, month, day) = (parts.next()?, parts.next()?, parts.next()?);
        let is_written_so = text.len() == 10 && parts.next().is_none() && text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-');
        let date = Date::new(year.parse().ok()?, month.parse().ok()?, day.parse().ok()?).ok()?;
        (is_written_so && date.year() >= 1).then(|| Self::of_date(date))
    }

    /// So many days later, or earlier.
    pub const fn plus(self, days: i64) -> Self {
        Self(self.0.saturating_add(days))
    }

    fn of_date(date: Date) -> Self {
        Self(EPOCH.until((jiff::Unit::Day, date)).map(|span| i64::from(span.get_days())).unwrap_or_default())
    }
}

impl fmt::Display for Day {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Every day that is stored comes from a date.
        let date = Span::new().try_days(self.0).and_then(|span| EPOCH.checked_add(span)).unwrap_or(Date::MAX);
        write!(formatter, "{date}")
    }
}

/// The calendar of the ledger: a time zone. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Calendar {
    name: String,
    zone: TimeZone,
}

impl Calendar {
    /// The calendar of a time zone, by its IANA name. None for one that there is not.
    pub fn named(name: &str) -> Option<Self> {
        let zone = TimeZone::get(name).ok()?;
        // As the database of time zones writes it, whatever was typed.
        Some(Self { name: zone.iana_name()?.to_owned(), zone })
    }

    /// The IANA name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// When a day begins, in Unix microseconds: at its first instant, which need not be midnight.
    pub fn begin_of(&self, day: Day) -> i64 {
        let date = Span::new().try_days(day.0).and_then(|span| EPOCH.checked_add(span));
        let begin = date.and_then(|date| date.to_zoned(self.zone.clone())).map(|begin| begin.timestamp().as_microsecond());
        begin.unwrap_or(if day.0 < 0 { i64::MIN } else { i64::MAX })
    }

    /// The day on which an instant counts, in Unix microseconds.
    pub fn day_of(&self, us: i64) -> Day {
        // What is out of the range of dates counts on the first or the last one.
        let end = if us < 0 { Timestamp::MIN } else { Timestamp::MAX };
        let instant = Timestamp::from_microsecond(us).unwrap_or(end);
        Day::of_date(self.zone.to_datetime(instant).date())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn us(text: &str) -> i64 {
        text.parse::<Timestamp>().expect("an instant").as_microsecond()
    }

    fn day(calendar: &Calendar, instant: &str) -> String {
        calendar.day_of(us(instant)).to_string()
    }

    #[test]
    fn a_day_is_written_as_it_is_read() {
        for text in ["1970-01-01", "2026-11-25", "2024-02-29", "0001-01-01", "9999-12-31"] {
            assert_eq!(Day::parse(text).expect(text).to_string(), text);
        }
        assert_eq!(Day::parse("1970-01-02"), Some(Day::of_number(1)));
        for text in ["", "2026-11-31", "2023-02-29", "2026-13-01", "0000-01-01", "2026-1-1", "20261125", "2026-11-25 ", "-026-11-25", "+026-11-25"] {
            assert_eq!(Day::parse(text), None, "{text}");
        }
    }

    #[test]
    fn days_begin_and_end_in_the_time_zone() {
        let calendar = Calendar::named("America/Sao_Paulo").expect("there is one");
        for (instant, date) in [
            ("2026-11-25T02:59:59.999999Z", "2026-11-24"),
            ("2026-11-25T03:00:00Z", "2026-11-25"),
            // 2018-11-04 began at 01:00: the clock went from 23:59:59 to that.
            ("2018-11-04T02:59:59Z", "2018-11-03"),
            ("2018-11-04T03:00:00Z", "2018-11-04"),
            // The last hour of 2019-02-16 came twice, and counts on that day both times.
            ("2019-02-17T01:30:00Z", "2019-02-16"),
            ("2019-02-17T02:30:00Z", "2019-02-16"),
            ("2019-02-17T02:59:59Z", "2019-02-16"),
            ("2019-02-17T03:00:00Z", "2019-02-17"),
        ] {
            assert_eq!(day(&calendar, instant), date, "{instant}");
        }
        assert_eq!(day(&Calendar::named("UTC").expect("there is one"), "2026-11-25T23:59:59Z"), "2026-11-25");
    }

    #[test]
    fn a_day_begins_with_its_first_instant() {
        let calendar = Calendar::named("America/Sao_Paulo").expect("there is one");
        for date in ["2018-11-03", "2018-11-04", "2019-02-16", "2019-02-17", "2026-11-25", "1970-01-01"] {
            let day = Day::parse(date).expect("a date");
            let begin = calendar.begin_of(day);
            assert_eq!((calendar.day_of(begin), calendar.day_of(begin - 1)), (day, day.plus(-1)), "{date}");
        }
        assert!(calendar.begin_of(Day::of_number(i64::MAX)) > calendar.begin_of(Day::of_number(i64::MIN)));
    }

    #[test]
    fn a_time_zone_has_the_name_of_the_database_of_time_zones() {
        assert_eq!(Calendar::named("america/sao_paulo").map(|calendar| calendar.name().to_owned()), Some("America/Sao_Paulo".to_owned()));
        for name in ["", "Mars/Olympus", "BRT3", "-03:00"] {
            assert!(Calendar::named(name).is_none(), "{name}");
        }
    }

    #[test]
    fn what_no_date_has_counts_on_the_first_or_the_last() {
        let calendar = Calendar::named("America/Sao_Paulo").expect("there is one");
        assert!(calendar.day_of(i64::MAX) > calendar.day_of(us("9999-12-29T00:00:00Z")));
        assert!(calendar.day_of(i64::MIN) < calendar.day_of(us("0001-01-01T00:00:00Z")));
    }

    #[test]
    fn a_day_in_utc_is_never_earlier_for_a_later_instant() {
        assert_eq!(Day::utc(-1), Day::of_number(-1));
        assert_eq!(Day::utc(0), Day::of_number(0));
        assert_eq!(Day::utc(US_PER_DAY), Day::of_number(1));
    }
}
