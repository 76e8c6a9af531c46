//! Sizes, times and durations, as people write and read them.

/// Units of a size, smallest first.
const UNITS: [(&str, u32); 5] = [("B", 0), ("KiB", 10), ("MiB", 20), ("GiB", 30), ("TiB", 40)];

/// Reads a size such as `512MiB` or `1GiB`; a bare number is bytes.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let refused = || {
        format!("{text:?} is not a size; write it like 512MiB or 1GiB (B, KiB, MiB, GiB or TiB)")
    };
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| refused())?;
    let shift = match unit.trim() {
        "" => 0,
        unit => UNITS
            .iter()
            .find(|(name, _)| name.eq_ignore_ascii_case(unit))
            .map(|(_, shift)| *shift)
            .ok_or_else(refused)?,
    };
    number
        .checked_mul(1 << shift)
        .ok_or_else(|| format!("{text:?} is more than can be counted"))
}

/// Writes a size in its greatest unit, exactly if it is a whole number of it.
pub fn size(bytes: u64) -> String {
    let (name, shift) = UNITS
        .iter()
        .rev()
        .find(|(_, shift)| bytes >> shift != 0)
        .unwrap_or(&UNITS[0]);
    let unit = 1_u64 << shift;
    if bytes.is_multiple_of(unit) {
        format!("{} {name}", bytes / unit)
    } else {
        #[expect(clippy::cast_precision_loss, reason = "shown with one digit only")]
        let value = bytes as f64 / unit as f64;
        format!("{value:.1} {name}")
    }
}

/// Writes a rate in bytes a second.
pub fn rate(bytes_per_s: f64) -> String {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a rate is small and not negative; conversion saturates"
    )]
    let bytes = bytes_per_s as u64;
    format!("{}/s", size(bytes))
}

/// Writes a duration given in milliseconds.
pub fn duration(ms: u64) -> String {
    match ms {
        0..1_000 => format!("{ms} ms"),
        1_000..60_000 => format!("{}.{} s", ms / 1_000, ms % 1_000 / 100),
        60_000..3_600_000 => format!("{} min {:02} s", ms / 60_000, ms % 60_000 / 1_000),
        _ => format!("{} h {:02} min", ms / 3_600_000, ms % 3_600_000 / 60_000),
    }
}

/// Reads a duration such as `5s`, `500ms` or `2min`.
pub fn parse_duration(text: &str) -> Result<std::time::Duration, String> {
    let refused = || format!("{text:?} is not a duration; write it like 500ms, 5s or 2min");
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| refused())?;
    let factor = match unit.trim() {
        "ms" => 1,
        "s" => 1_000,
        "m" | "min" => 60_000,
        _ => return Err(refused()),
    };
    number
        .checked_mul(factor)
        .map(std::time::Duration::from_millis)
        .ok_or_else(refused)
}

/// Writes a moment (ms since the Unix epoch) in UTC; nothing for 0.
pub fn moment(ms: u64) -> String {
    if ms == 0 {
        return "-".to_owned();
    }
    let seconds = ms / 1_000;
    let (year, month, day) = civil(seconds / 86_400);
    let (hour, minute, second) = (seconds / 3_600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}Z")
}

/// The date of a day counted from 1970-01-01 (Howard Hinnant, "chrono-compatible low-level date algorithms").
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let era = days / 146_097;
    let day_of_era = days % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 {
        shifted + 3
    } else {
        shifted - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    (year, month, day)
}

/// The beginning of a digest, for tables.
pub fn short(digest: &str) -> &str {
    digest.get(..12).unwrap_or(digest)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn sizes_are_read_and_written() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("512MiB", 512 << 20),
            ("1 GiB", 1 << 30),
            ("2tib", 2 << 40),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for bad in [
            "",
            "MiB",
            "-1MiB",
            "1.5GiB",
            "1GB",
            "1G",
            "99999999TiB",
            "1MiBx",
        ] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
        assert_eq!(size(0), "0 B");
        assert_eq!(size(1 << 30), "1 GiB");
        assert_eq!(size(1536 << 20), "1.5 GiB");
        assert_eq!(size(1023), "1023 B");
    }

    #[test]
    fn times_are_written() {
        assert_eq!(moment(0), "-");
        assert_eq!(moment(1_700_000_000_000), "2023-11-14 22:13:20Z");
        assert_eq!(moment(951_782_399_000), "2000-02-28 23:59:59Z");
        assert_eq!(moment(951_868_800_000), "2000-03-01 00:00:00Z");
        assert_eq!(duration(61), "61 ms");
        assert_eq!(duration(4_250), "4.2 s");
        assert_eq!(duration(65_000), "1 min 05 s");
        assert_eq!(parse_duration("5s").unwrap().as_millis(), 5_000);
        assert!(parse_duration("5").is_err());
    }
}
