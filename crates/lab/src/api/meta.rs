//! Small helpers around untyped objects: metadata access, time and random names.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::crypto::ring::default_provider;
use serde_json::{Map, Value};

/// The string at a JSON pointer, or the empty string.
pub(crate) fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or("")
}

/// The array at a JSON pointer, or an empty one.
pub(crate) fn items<'a>(object: &'a Value, pointer: &str) -> &'a [Value] {
    object.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// `metadata.name`.
pub(crate) fn name(object: &Value) -> &str {
    text(object, "/metadata/name")
}

/// `metadata.namespace`.
pub(crate) fn namespace(object: &Value) -> &str {
    text(object, "/metadata/namespace")
}

/// `metadata`, made where it is missing; `None` only if the object is no JSON object.
pub(crate) fn metadata_mut(object: &mut Value) -> Option<&mut Map<String, Value>> {
    section_mut(object, "metadata")
}

/// A top-level section such as `spec`, made where it is missing or null.
pub(crate) fn section_mut<'a>(
    object: &'a mut Value,
    section: &str,
) -> Option<&'a mut Map<String, Value>> {
    let entry = object.as_object_mut()?.entry(section).or_insert(Value::Null);
    if entry.is_null() {
        *entry = Value::Object(Map::new());
    }
    entry.as_object_mut()
}

/// Writes a value unless there is one already (null counts as none).
pub(crate) fn default(map: &mut Map<String, Value>, key: &str, value: impl Into<Value>) {
    if map.get(key).is_none_or(Value::is_null) {
        map.insert(key.to_string(), value.into());
    }
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// A time as Kubernetes writes `metav1.Time`: RFC 3339, UTC, whole seconds.
pub(crate) fn rfc3339(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days as i64);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z",
        rest / 3600,
        rest / 60 % 60,
        rest % 60
    )
}

/// Now, as Kubernetes writes it.
pub fn timestamp() -> String {
    rfc3339(now())
}

/// Seconds since 1970 of an RFC 3339 time in UTC (fractions are dropped).
pub(crate) fn parse_rfc3339(text: &str) -> Option<u64> {
    let number = |from: usize, to: usize| text.get(from..to)?.parse::<i64>().ok();
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
    text.ends_with('Z').then_some(())?;
    u64::try_from(days_from_civil(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second)
        .ok()
}

/// Days since 1970-01-01 to a date of the proleptic Gregorian calendar. The year starts in March so
/// that the leap day is its last.
fn civil(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let of_era = shifted.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let day_of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

/// An age as `kubectl get` shows it: the two largest units, the second only where it matters.
pub(crate) fn age(since: &str) -> String {
    let Some(then) = parse_rfc3339(since) else { return "<unknown>".into() };
    human(Duration::from_secs(now().saturating_sub(then)))
}

fn human(age: Duration) -> String {
    let seconds = age.as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    let pair = |big: u64, unit: &str, small: u64, small_unit: &str| match small {
        0 => format!("{big}{unit}"),
        _ => format!("{big}{unit}{small}{small_unit}"),
    };
    match seconds {
        0..120 => format!("{seconds}s"),
        _ if minutes < 10 => pair(minutes, "m", seconds % 60, "s"),
        _ if hours < 3 => format!("{minutes}m"),
        _ if hours < 8 => pair(hours, "h", minutes % 60, "m"),
        _ if hours < 48 => format!("{hours}h"),
        _ if days < 8 => pair(days, "d", hours % 24, "h"),
        _ if days < 730 => format!("{days}d"),
        _ => format!("{}y", days / 365),
    }
}

/// Bytes from the cryptographic random source.
pub(crate) fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    // The source is getrandom(2), which fails only on kernels that are far older than any that runs this.
    if default_provider().secure_random.fill(&mut bytes).is_err() {
        tracing::error!("no random bytes from the kernel");
    }
    bytes
}

/// A bearer token: 32 random bytes as hexadecimal digits.
pub fn random_token() -> String {
    random_bytes::<32>().iter().map(|b| format!("{b:02x}")).collect()
}

/// A random (version 4) UUID (RFC 9562, section 5.4).
pub fn random_uid() -> String {
    let mut b = random_bytes::<16>();
    b[6] = b[6] & 0x0f | 0x40;
    b[8] = b[8] & 0x3f | 0x80;
    let hex: String = b.iter().map(|b| format!("{b:02x}")).collect();
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

/// Five characters for `generateName`: no vowels and no digits that look like letters, so that no
/// word appears by chance.
pub(crate) fn random_suffix() -> String {
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    random_bytes::<5>().iter().map(|b| ALPHABET[*b as usize % ALPHABET.len()] as char).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn times_are_written_as_kubernetes_writes_them() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(951_827_696), "2000-02-29T12:34:56Z");
        assert_eq!(parse_rfc3339("2000-02-29T12:34:56.123456Z"), Some(951_827_696));
        assert_eq!(parse_rfc3339("yesterday"), None);
    }

    #[test]
    fn ages_are_short() {
        for (seconds, text) in
            [(0, "0s"), (119, "119s"), (120, "2m"), (185, "3m5s"), (7_200, "120m"), (90_000, "25h")]
        {
            assert_eq!(human(Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn random_values_have_the_expected_form() {
        let uid = random_uid();
        assert_eq!((uid.len(), &uid[14..15]), (36, "4"));
        assert_eq!(random_token().len(), 64);
        assert_ne!(random_token(), random_token());
    }

    proptest! {
        #[test]
        fn times_survive_a_round_trip(seconds in 0u64..10_000_000_000) {
            prop_assert_eq!(parse_rfc3339(&rfc3339(seconds)), Some(seconds));
        }
    }
}
