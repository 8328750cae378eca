//! An answer of the domain name system: the addresses that it leads to.

use super::is_private;
use bytes::Bytes;
use hickory_proto::{
    op::Message,
    rr::{Name, RData},
};
use std::{collections::HashSet, net::Ipv4Addr};

/// An answer, as it came and as it was understood.
pub(super) struct Answer {
    bytes: Bytes,
    message: Message,
}

impl Answer {
    /// Reads one; `None` if it is not one.
    pub(super) fn parse(bytes: Bytes) -> Option<Self> {
        let message = Message::from_vec(&bytes).ok()?;
        Some(Self { bytes, message })
    }

    /// Takes addresses of private networks out. Returns whether anything is left, if there were any.
    pub(super) fn drop_private(&mut self) -> bool {
        let before = self.message.answers.len();
        self.message
            .answers
            .retain(|record| !matches!(&record.data, RData::A(a) if is_private(a.0)));
        if self.message.answers.len() == before {
            return true;
        }
        let is_left = self.message.answers.iter().any(|record| matches!(record.data, RData::A(_)));
        match self.message.to_vec() {
            Ok(bytes) => self.bytes = bytes.into(),
            Err(_) => return false,
        }
        is_left
    }

    /// The addresses that a name leads to, directly or by other names of the same answer, with the seconds for which that is
    /// so. Any other address has no business in the answer.
    pub(super) fn addresses(&self, name: &str) -> Vec<(Ipv4Addr, u32)> {
        let mut names: HashSet<String> = HashSet::from([name.to_owned()]);
        // Each round finds at least one alias more or is the last.
        loop {
            let aliases = self.message.answers.iter().filter_map(|record| match &record.data {
                RData::CNAME(alias) if names.contains(&text(&record.name)) => Some(text(&alias.0)),
                _ => None,
            });
            let found: Vec<String> = aliases.filter(|alias| !names.contains(alias)).collect();
            if found.is_empty() {
                break;
            }
            names.extend(found);
        }
        let addresses = self.message.answers.iter().filter_map(|record| match &record.data {
            RData::A(address) if names.contains(&text(&record.name)) => {
                Some((address.0, record.ttl))
            }
            _ => None,
        });
        addresses.collect()
    }

    /// The answer on the wire.
    pub(super) fn into_bytes(self) -> Bytes {
        self.bytes
    }
}

/// A name as rules write it: in lower case, without a dot at its end.
pub(super) fn text(name: &Name) -> String {
    let text = name.to_lowercase().to_ascii();
    text.strip_suffix('.').map_or(text.clone(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::Answer;
    use hickory_proto::{
        op::{Message, OpCode, Query},
        rr::{
            Name, RData, Record, RecordType,
            rdata::{A, CNAME},
        },
    };

    fn answer(records: &[(&str, &str)]) -> Answer {
        let mut message = Message::response(7, OpCode::Query);
        message.add_query(Query::query(Name::from_ascii("a.test.").unwrap(), RecordType::A));
        for (name, value) in records {
            let data = match value.parse() {
                Ok(address) => RData::A(A(address)),
                Err(_) => RData::CNAME(CNAME(Name::from_ascii(value).unwrap())),
            };
            message.add_answer(Record::from_rdata(Name::from_ascii(name).unwrap(), 30, data));
        }
        Answer::parse(message.to_vec().unwrap().into()).unwrap()
    }

    fn found(answer: &Answer) -> Vec<String> {
        answer.addresses("a.test").iter().map(|(address, _)| address.to_string()).collect()
    }

    #[test]
    fn only_what_the_name_leads_to_counts() {
        let aliases = [("b.test.", "c.test."), ("A.test.", "b.test."), ("c.test.", "1.2.3.4")];
        assert_eq!(found(&answer(&aliases)), ["1.2.3.4"]);
        let foreign = [("a.test.", "1.2.3.4"), ("other.test.", "5.6.7.8")];
        assert_eq!(found(&answer(&foreign)), ["1.2.3.4"]);
        let circle = [("a.test.", "b.test."), ("b.test.", "a.test.")];
        assert!(found(&answer(&circle)).is_empty());
    }

    #[test]
    fn private_addresses_are_taken_out() {
        let mut mixed = answer(&[("a.test.", "10.0.0.1"), ("a.test.", "1.2.3.4")]);
        assert!(mixed.drop_private());
        let mixed = Answer::parse(mixed.into_bytes()).unwrap();
        assert_eq!(found(&mixed), ["1.2.3.4"]);
        assert!(
            !answer(&[("a.test.", "127.0.0.1"), ("a.test.", "169.254.169.254")]).drop_private()
        );
        assert!(answer(&[("a.test.", "b.test.")]).drop_private(), "nothing was taken out");
    }
}
