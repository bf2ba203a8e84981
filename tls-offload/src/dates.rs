//! From when until when things are good: certificates, revocation lists, OCSP responses.

use rustls::pki_types::CertificateRevocationListDer;
use x509_parser::asn1_rs::{Any, Class, FromDer, Tag};
use x509_parser::revocation_list::CertificateRevocationList;
use x509_parser::time::ASN1Time;

/// Where a moment lies relative to some dates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Validity {
    /// They have ended.
    Expired {
        /// Seconds since they did.
        since_s: u64,
    },
    /// They are yet to begin.
    NotYet {
        /// Seconds until they do.
        in_s: u64,
    },
    /// Within the dates.
    Valid {
        /// Seconds until they end.
        for_s: u64,
    },
}

/// Dates, in Unix seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dates {
    /// First moment.
    pub begin_s: i64,
    /// Last moment; the latest there is where none is said.
    pub end_s: i64,
}

impl Dates {
    /// Where `now_s` (Unix seconds) lies.
    pub fn validity(&self, now_s: i64) -> Validity {
        if now_s < self.begin_s {
            Validity::NotYet { in_s: self.begin_s.abs_diff(now_s) }
        } else if now_s > self.end_s {
            Validity::Expired { since_s: now_s.abs_diff(self.end_s) }
        } else {
            Validity::Valid { for_s: self.end_s.abs_diff(now_s) }
        }
    }

    /// Seconds from the first to the last moment.
    pub fn length_s(&self) -> u64 {
        self.end_s.abs_diff(self.begin_s)
    }

    /// When both are good.
    fn and(self, other: Dates) -> Dates {
        Dates { begin_s: self.begin_s.max(other.begin_s), end_s: self.end_s.min(other.end_s) }
    }
}

/// From when until when a client can be judged by all of `lists` (thisUpdate and nextUpdate, RFC 5280 §5.1.2); `None` if one of them cannot be read.
pub fn revocation_dates(lists: &[CertificateRevocationListDer<'_>]) -> Option<Dates> {
    let dates = |list: &CertificateRevocationListDer<'_>| {
        let (_, list) = CertificateRevocationList::from_der(list).ok()?;
        let end = list.next_update().map_or(i64::MAX, |end| end.timestamp());
        Some(Dates { begin_s: list.last_update().timestamp(), end_s: end })
    };
    let dates: Option<Vec<Dates>> = lists.iter().map(dates).collect();
    dates?.into_iter().reduce(Dates::and)
}

/// From when until when an OCSP response (DER) is good (thisUpdate and nextUpdate, RFC 6960 §4.2.1); `None` if it cannot be read, or says nothing.
pub fn staple_dates(staple: &[u8]) -> Option<Dates> {
    let mut response = Reader::of(staple)?.enter(Tag::Sequence)?;
    response.next(Tag::Enumerated)?;
    let mut bytes = response.enter_tagged(0)?.enter(Tag::Sequence)?;
    bytes.next(Tag::Oid)?;
    let basic = bytes.next(Tag::OctetString)?;
    let mut data = Reader(basic.data).enter(Tag::Sequence)?.enter(Tag::Sequence)?;
    // A version that is not 1 is the only one that is written.
    let _version = data.enter_tagged(0);
    let _responder = data.any()?;
    data.next(Tag::GeneralizedTime)?;
    let mut singles = data.enter(Tag::Sequence)?;
    let mut dates: Option<Dates> = None;
    while !singles.0.is_empty() {
        let mut single = singles.enter(Tag::Sequence)?;
        single.next(Tag::Sequence)?;
        let _status = single.any()?;
        let begin_s = single.time()?;
        let end_s = match single.enter_tagged(0) {
            Some(mut end) => end.time()?,
            None => i64::MAX,
        };
        let each = Dates { begin_s, end_s };
        dates = Some(dates.map_or(each, |dates| dates.and(each)));
    }
    dates
}

/// Goes through DER from element to element.
struct Reader<'d>(&'d [u8]);

impl<'d> Reader<'d> {
    /// Of what is one element and nothing behind it.
    fn of(der: &'d [u8]) -> Option<Reader<'d>> {
        let (rest, _) = Any::from_der(der).ok()?;
        rest.is_empty().then_some(Reader(der))
    }

    fn any(&mut self) -> Option<Any<'d>> {
        let (rest, element) = Any::from_der(self.0).ok()?;
        self.0 = rest;
        Some(element)
    }

    fn next(&mut self, tag: Tag) -> Option<Any<'d>> {
        self.any().filter(|element| element.class() == Class::Universal && element.tag() == tag)
    }

    /// What is inside the next element.
    fn enter(&mut self, tag: Tag) -> Option<Reader<'d>> {
        self.next(tag).map(|element| Reader(element.data))
    }

    /// What is inside the next element, if it has this tag of its context; otherwise it stays.
    fn enter_tagged(&mut self, tag: u32) -> Option<Reader<'d>> {
        let (rest, element) = Any::from_der(self.0).ok()?;
        if element.class() != Class::ContextSpecific || element.tag() != Tag(tag) {
            return None;
        }
        self.0 = rest;
        Some(Reader(element.data))
    }

    fn time(&mut self) -> Option<i64> {
        let (rest, time) = ASN1Time::from_der(self.0).ok()?;
        self.0 = rest;
        Some(time.timestamp())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_lies_before_within_or_behind() {
        let dates = Dates { begin_s: 100, end_s: 200 };
        assert_eq!(dates.validity(99), Validity::NotYet { in_s: 1 });
        assert_eq!(dates.validity(100), Validity::Valid { for_s: 100 });
        assert_eq!(dates.validity(200), Validity::Valid { for_s: 0 });
        assert_eq!(dates.validity(260), Validity::Expired { since_s: 60 });
        assert_eq!(dates.length_s(), 100);
    }

    /// `openssl ocsp -index … -reqin … -respout …` of OpenSSL 3.0, with one key by hash, without certificates.
    const STAPLE: &[u8] = include_bytes!("dates/staple.der");

    #[test]
    fn the_dates_of_a_response_are_those_that_openssl_shows() {
        let dates = staple_dates(STAPLE).expect("a response");
        assert_eq!((dates.begin_s, dates.end_s), (1_795_334_787, 1_795_939_587));
        for end in 0..STAPLE.len() {
            assert_eq!(staple_dates(&STAPLE[..end]), None);
        }
        // tryLater says nothing.
        assert_eq!(staple_dates(&[0x30, 3, 0x0a, 1, 3]), None);
    }
}
