//! Durations as the API spells them: Go style (`1m30s`, `5.0s`, `250ms`) or a plain number of seconds.

use std::time::Duration;

/// The longest duration that any parameter takes: one year.
pub const DURATION_MAX: Duration = Duration::from_secs(365 * 24 * 3600);

/// The text is not a duration, or over [`DURATION_MAX`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid duration {0:?}: expected such as 10s, 1m30s or a number of seconds")]
pub struct ParseDurationError(pub String);

/// Parses a duration. Fractions are allowed (`5.0s`), signs are not.
pub fn parse(text: &str) -> Result<Duration, ParseDurationError> {
    let error = || ParseDurationError(text.chars().take(40).collect());
    let mut rest = text.trim();
    if rest.is_empty() {
        return Err(error());
    }
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let number_len = rest.bytes().take_while(|b| b.is_ascii_digit() || *b == b'.').count();
        let number: f64 = rest[..number_len].parse().map_err(|_| error())?;
        rest = &rest[number_len..];
        let unit_len = rest.bytes().take_while(|b| !b.is_ascii_digit() && *b != b'.').count();
        let unit = match &rest[..unit_len] {
            // A bare number is only a whole text: `5` but not `1m5`.
            "" if number_len == text.trim().len() => 1.0,
            "ns" => 1e-9,
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return Err(error()),
        };
        rest = &rest[unit_len..];
        seconds += number * unit;
    }
    Duration::try_from_secs_f64(seconds)
        .ok()
        .filter(|duration| *duration <= DURATION_MAX)
        .ok_or_else(error)
}

#[cfg(test)]
mod tests {
    use super::parse;
    use std::time::Duration;

    #[test]
    fn every_spelling_of_the_clients_parses() {
        for (text, milliseconds) in [
            ("5s", 5000),
            ("5.0s", 5000),
            ("0", 0),
            ("0s", 0),
            ("10", 10_000),
            ("1m30s", 90_000),
            ("250ms", 250),
        ] {
            assert_eq!(parse(text), Ok(Duration::from_millis(milliseconds)), "{text}");
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for bad in ["", " ", "s", "-1s", "1x", "1m5", "1..2s", "1e9s", "99999999h", "ü", "5sü"] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }
}
