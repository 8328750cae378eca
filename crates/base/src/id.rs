//! Ids as types: parsed once at the edge, then safe in a path, a key, a query or a command.

/// Why a text is not an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a {kind} id: expected `{prefix}-` and a UUID in lower case")]
pub struct ParseIdError {
    /// What was being parsed, for people.
    pub kind: &'static str,
    /// The prefix that such an id starts with.
    pub prefix: &'static str,
}

/// Defines an id type whose text is `PREFIX-UUID`, such as `volume-01890a5d-ac96-774b-bcce-b302099a8057`.
///
/// The text holds only `[a-z0-9-]`, so it can stand in a path, an object key or a command without quoting. Parsing
/// accepts exactly what `Display` writes.
#[macro_export]
macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name($crate::__uuid::Uuid);

        impl $name {
            /// An id that sorts by the time of its making (UUID version 7).
            #[must_use]
            pub fn now() -> Self {
                Self($crate::__uuid::Uuid::now_v7())
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, concat!($prefix, "-{}"), self.0.hyphenated())
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                std::fmt::Display::fmt(self, f)
            }
        }

        impl std::str::FromStr for $name {
            type Err = $crate::id::ParseIdError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                let error = $crate::id::ParseIdError { kind: $prefix, prefix: $prefix };
                let uuid = text
                    .strip_prefix(concat!($prefix, "-"))
                    .and_then(|uuid| $crate::__uuid::Uuid::try_parse(uuid).ok())
                    .ok_or_else(|| error.clone())?;
                let id = Self(uuid);
                // `try_parse` also takes braces, upper case and missing hyphens; one id must have one spelling.
                if id.to_string() == text { Ok(id) } else { Err(error) }
            }
        }

        impl $crate::__serde::Serialize for $name {
            fn serialize<S: $crate::__serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> $crate::__serde::Deserialize<'de> for $name {
            fn deserialize<D: $crate::__serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <String as $crate::__serde::Deserialize>::deserialize(deserializer)?;
                text.parse().map_err($crate::__serde::de::Error::custom)
            }
        }
    };
}

#[cfg(test)]
#[expect(unreachable_pub, reason = "the macro is for ids that are public")]
mod tests {
    crate::id!(
        /// A thing.
        ThingId,
        "thing"
    );

    #[test]
    fn text_round_trips() {
        let id = ThingId::now();
        assert_eq!(id.to_string().parse::<ThingId>(), Ok(id));
    }

    #[test]
    fn only_the_canonical_spelling_parses() {
        let id = ThingId::now().to_string();
        for bad in [
            id.to_uppercase(),
            id.replace("thing-", "other-"),
            id.replace("thing-", ""),
            format!("{id}/.."),
            format!("{id}\0"),
            id.replacen('-', "", 2),
            String::new(),
            "thing-".into(),
        ] {
            assert!(bad.parse::<ThingId>().is_err(), "{bad:?} parsed");
        }
    }
}
