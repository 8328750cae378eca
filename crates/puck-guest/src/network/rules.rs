//! Which names the rules allow.

use guest::protocol::DomainRule;
use std::collections::BTreeMap;

/// Rules by pattern. Without any, nothing is restricted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Rules(BTreeMap<String, bool>);

impl Rules {
    /// Of two rules for one pattern, the one that refuses counts.
    pub(super) fn new(rules: &[DomainRule]) -> Self {
        let mut patterns = BTreeMap::new();
        for DomainRule { domain, allow } in rules {
            let both = patterns.entry(domain.clone()).or_insert(true);
            *both &= allow;
        }
        Self(patterns)
    }

    /// Whether anything is restricted.
    pub(super) fn restrict(&self) -> bool {
        !self.0.is_empty()
    }

    /// Whether a name, in lower case and without a dot at its end, is allowed. The most specific pattern counts: the name itself,
    /// then what it lies below, nearest first, then everything.
    pub(super) fn allow(&self, name: &str) -> bool {
        if let Some(allow) = self.0.get(name) {
            return *allow;
        }
        let mut above = name;
        while let Some((_, parent)) = above.split_once('.') {
            if let Some(allow) = self.0.get(&format!("*.{parent}")) {
                return *allow;
            }
            above = parent;
        }
        self.0.get("*").copied().unwrap_or(false)
    }
}

#[cfg(test)]
mod tests {
    use super::Rules;
    use guest::protocol::DomainRule;

    fn rules(text: &str) -> Rules {
        let rule =
            |word: &str| DomainRule { domain: word[1..].to_owned(), allow: word.starts_with('+') };
        Rules::new(&text.split_whitespace().map(rule).collect::<Vec<_>>())
    }

    #[test]
    fn the_most_specific_pattern_counts() {
        for (text, allowed, refused) in [
            (
                "+example.com",
                "example.com",
                "www.example.com com example.com.evil.net evilexample.com",
            ),
            ("+*.example.com", "www.example.com a.b.example.com", "example.com badexample.com"),
            ("+* -example.com", "www.example.com anything", "example.com"),
            ("-* +example.com", "example.com", "www.example.com anything"),
            (
                "+* -*.example.com +good.example.com",
                "example.com good.example.com",
                "bad.example.com a.good.example.com",
            ),
            (
                "+*.example.com -*.in.example.com",
                "a.example.com in.example.com",
                "a.in.example.com",
            ),
            ("+example.com -example.com", "", "example.com"),
            ("-example.com +example.com", "", "example.com"),
        ] {
            let rules = rules(text);
            assert!(rules.restrict());
            for name in allowed.split_whitespace() {
                assert!(rules.allow(name), "{text}: {name}");
            }
            for name in refused.split_whitespace() {
                assert!(!rules.allow(name), "{text}: {name}");
            }
        }
        assert!(!Rules::default().restrict());
    }
}
