//! `strftime_now` of templates: the date that a conversation begins with.

use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::{Error, ErrorKind};

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = [
    "Sunday",
    "Monday",
    "Tuesday",
    "Wednesday",
    "Thursday",
    "Friday",
    "Saturday",
];
/// Characters of short names.
const SHORT: usize = 3;
const SECONDS_PER_DAY: u64 = 86_400;

/// Now, in UTC, by a format of C's `strftime`.
pub(super) fn strftime_now(format: &str) -> Result<String, Error> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    strftime(format, now.map_or(0, |now| now.as_secs()))
}

fn strftime(format: &str, seconds: u64) -> Result<String, Error> {
    let (days, second) = (seconds / SECONDS_PER_DAY, seconds % SECONDS_PER_DAY);
    let (year, month, day) = date(days);
    let month_name = MONTHS[month - 1];
    let day_name = DAYS[(days as usize + 4) % 7];
    let mut text = String::new();
    let mut characters = format.chars();
    while let Some(character) = characters.next() {
        if character != '%' {
            text.push(character);
            continue;
        }
        let part = match characters.next() {
            Some('Y') => year.to_string(),
            Some('y') => format!("{:02}", year % 100),
            Some('m') => format!("{month:02}"),
            Some('d') => format!("{day:02}"),
            Some('e') => format!("{day:2}"),
            Some('B') => month_name.to_owned(),
            Some('b') => month_name[..SHORT].to_owned(),
            Some('A') => day_name.to_owned(),
            Some('a') => day_name[..SHORT].to_owned(),
            Some('H') => format!("{:02}", second / 3600),
            Some('M') => format!("{:02}", second / 60 % 60),
            Some('S') => format!("{:02}", second % 60),
            Some('%') => "%".to_owned(),
            other => {
                let other = other.map_or(String::new(), String::from);
                let message = format!("strftime_now knows no %{other}");
                return Err(Error::new(ErrorKind::InvalidOperation, message));
            }
        };
        text.push_str(&part);
    }
    Ok(text)
}

/// Year, month and day (both from 1) of a day counted from 1970 on.
fn date(days: u64) -> (u64, usize, u64) {
    let is_leap =
        |year: u64| year.is_multiple_of(4) && !year.is_multiple_of(100) || year.is_multiple_of(400);
    let (mut year, mut left) = (1970, days);
    loop {
        let length = 365 + u64::from(is_leap(year));
        if left < length {
            break;
        }
        (year, left) = (year + 1, left - length);
    }
    let february = 28 + u64::from(is_leap(year));
    let lengths = [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 1;
    for length in lengths {
        if left < length {
            break;
        }
        (month, left) = (month + 1, left - length);
    }
    (year, month, left + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, date) in [
            (0, "1970-01-01 00:00:00 Thursday"),
            (951_782_400, "2000-02-29 00:00:00 Tuesday"),
            (1_709_251_199, "2024-02-29 23:59:59 Thursday"),
            (1_735_689_599, "2024-12-31 23:59:59 Tuesday"),
            (4_107_542_400, "2100-03-01 00:00:00 Monday"),
        ] {
            let text = strftime("%Y-%m-%d %H:%M:%S %A", seconds);
            assert_eq!(text.unwrap(), date);
        }
        let text = strftime("%e %b %y, %a, %d %B: 100%%", 1_709_251_199);
        assert_eq!(text.unwrap(), "29 Feb 24, Thu, 29 February: 100%");
        assert!(strftime("%Q", 0).is_err());
        assert!(strftime("50%", 0).is_err());
    }
}
