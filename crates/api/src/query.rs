//! Query strings, where one key may stand many times (`cmd=a&cmd=b`).

use percent_encoding::percent_decode_str;

/// The decoded pairs of a query string, in order. A pair that is not UTF-8 after decoding is an error.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Query(Vec<(String, String)>);

/// A key or value of the query is not UTF-8 after percent-decoding.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("query is not valid UTF-8")]
pub struct QueryError;

impl Query {
    /// Parses what follows the `?` of a URL, in the form encoding (`+` is a space).
    pub fn parse(raw: &str) -> Result<Self, QueryError> {
        let decode = |text: &str| {
            let spaced = text.replace('+', " ");
            percent_decode_str(&spaced)
                .decode_utf8()
                .map(|text| text.into_owned())
                .map_err(|_| QueryError)
        };
        raw.split('&')
            .filter(|pair| !pair.is_empty())
            .map(|pair| {
                let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
                Ok((decode(key)?, decode(value)?))
            })
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// The first value of `key`.
    #[must_use]
    pub fn first(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(k, _)| k == key).map(|(_, value)| value.as_str())
    }

    /// Every value of `key`, in order.
    pub fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(k, _)| k == key).map(|(_, value)| value.as_str())
    }

    /// Whether `key` is there with a value that means yes: `true`, `1`, or none at all.
    #[must_use]
    pub fn flag(&self, key: &str) -> bool {
        matches!(self.first(key), Some("true" | "1" | ""))
    }
}

impl FromIterator<(String, String)> for Query {
    fn from_iter<T: IntoIterator<Item = (String, String)>>(pairs: T) -> Self {
        Self(pairs.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::Query;

    #[test]
    fn repeated_keys_keep_their_order() {
        let query = Query::parse("cmd=sh&cmd=-c&cmd=echo+a%3Becho%20b&tty=true&x").expect("UTF-8");
        assert_eq!(query.all("cmd").collect::<Vec<_>>(), ["sh", "-c", "echo a;echo b"]);
        assert!(query.flag("tty") && query.flag("x") && !query.flag("stdin"));
        assert_eq!(query.first("none"), None);
    }

    #[test]
    fn foreign_bytes_are_refused() {
        assert!(Query::parse("a=%ff").is_err());
    }
}
