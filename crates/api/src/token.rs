//! API tokens: `org/org-id/token-id/secret`.

use crate::name::OrgName;
use std::{fmt, str::FromStr};

/// A parsed token. `Debug` never shows the secret; [`Token::reveal`] does.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// The organization's name.
    pub org: OrgName,
    /// The organization's short id, as in host names.
    pub org_id: String,
    /// Which of the organization's tokens this is.
    pub id: String,
    secret: String,
}

/// The text is not four non-empty parts of `[A-Za-z0-9_-]` with `/` between. Never holds the text itself.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a token has the form org/org-id/token-id/secret")]
pub struct ParseTokenError;

impl Token {
    /// A token of its parts. The parts must come from this server, not from a client.
    #[must_use]
    pub fn new(org: OrgName, org_id: String, id: String, secret: String) -> Self {
        Self { org, org_id, id, secret }
    }

    /// The secret part.
    #[must_use]
    pub fn secret(&self) -> &str {
        &self.secret
    }

    /// The whole text, for the one who asked for the token.
    #[must_use]
    pub fn reveal(&self) -> String {
        format!("{}/{}/{}/{}", self.org, self.org_id, self.id, self.secret)
    }
}

impl FromStr for Token {
    type Err = ParseTokenError;

    fn from_str(text: &str) -> Result<Self, ParseTokenError> {
        let plain = |part: &str| {
            !part.is_empty()
                && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        };
        let parts: Vec<&str> = text.split('/').collect();
        let [org, org_id, id, secret] = parts[..] else { return Err(ParseTokenError) };
        if ![org_id, id, secret].into_iter().all(plain) {
            return Err(ParseTokenError);
        }
        let org = org.parse().map_err(|_| ParseTokenError)?;
        Ok(Self { org, org_id: org_id.into(), id: id.into(), secret: secret.into() })
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}/…", self.org, self.org_id, self.id)
    }
}

#[cfg(test)]
mod tests {
    use super::Token;

    #[test]
    fn reveals_only_on_request() {
        let token: Token = "acme/1a2b/t1/s3cret".parse().expect("well formed");
        assert_eq!(token.reveal(), "acme/1a2b/t1/s3cret");
        assert!(!format!("{token:?}").contains("s3cret"));
    }

    #[test]
    fn malformed_tokens_are_refused() {
        for bad in [
            "",
            "acme",
            "acme/1/t",
            "acme/1/t/s/x",
            "/1/t/s",
            "acme//t/s",
            "acme/1/t/",
            "acme/1/../s",
        ] {
            assert!(bad.parse::<Token>().is_err(), "{bad:?}");
        }
    }
}
