//! Parameters of a query, as filters look at them.

use std::borrow::Cow;

use towpath_config::model::ParameterMatch;

/// Whether a parameter is what a filter is about.
pub(super) fn fits(wanted: &ParameterMatch, query: Option<&str>) -> bool {
    let ParameterMatch { name, pattern, except } = wanted;
    parameters(query.unwrap_or_default()).any(|(own, value)| {
        name.as_ref().is_none_or(|name| own.eq_ignore_ascii_case(name.as_bytes()))
            && pattern.as_ref().is_none_or(|pattern| pattern.fits(&value))
            && except.as_ref().is_none_or(|except| !except.fits(&value))
    })
}

/// Names and values, decoded as forms are (`+` is a blank). `;` parts them as `&` does: some servers have it so.
fn parameters(query: &str) -> impl Iterator<Item = (Cow<'_, [u8]>, Cow<'_, [u8]>)> {
    query.split(['&', ';']).filter(|part| !part.is_empty()).map(|part| {
        let (name, value) = part.split_once('=').unwrap_or((part, ""));
        (decoded(name), decoded(value))
    })
}

/// An escape that is none stays as it is: what looks at it decides.
fn decoded(text: &str) -> Cow<'_, [u8]> {
    let bytes = text.as_bytes();
    if !bytes.iter().any(|byte| matches!(byte, b'%' | b'+')) {
        return Cow::Borrowed(bytes);
    }
    let mut out = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let [first, after @ ..] = rest {
        let digit = |place: usize| after.get(place).and_then(|digit| char::from(*digit).to_digit(16));
        (rest, _) = match (first, digit(0), digit(1)) {
            (b'%', Some(high), Some(low)) => (&after[2..], out.push((high << 4 | low) as u8)),
            (b'+', _, _) => (after, out.push(b' ')),
            (byte, _, _) => (after, out.push(*byte)),
        };
    }
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use towpath_config::pattern::{Case, Extent, Pattern};

    use super::*;

    #[test]
    fn a_parameter_is_found_decoded_and_any_of_its_values_counts() {
        let pattern = |text: &str, extent| Some(Pattern::new(text, Case::Counts, extent).unwrap());
        let digits =
            || ParameterMatch { name: Some("id".into()), pattern: None, except: pattern("[0-9]+", Extent::Whole) };
        let script = || ParameterMatch { name: None, pattern: pattern("(?i)<script", Extent::Part), except: None };
        let there = || ParameterMatch { name: Some("debug".into()), pattern: None, except: None };
        let rows = [
            (digits(), "id=12", false),
            (digits(), "ID=1x", true),
            (digits(), "%69d=1x", true),
            (digits(), "id=", true),
            (digits(), "id=1&x=2&id=a", true),
            (digits(), "x=1;id=a", true),
            (digits(), "id=1%zz", true),
            (digits(), "other=x", false),
            (digits(), "", false),
            (script(), "q=%3CScRiPt%3E", true),
            (script(), "q=script", false),
            (there(), "debug", true),
            (there(), "x=debug", false),
        ];
        for (wanted, query, fits_it) in rows {
            assert_eq!(fits(&wanted, Some(query)), fits_it, "{wanted:?} {query}");
        }
        assert!(!fits(&there(), None));
        assert_eq!(&*decoded("a+b%20c%4"), b"a b c%4");
    }
}
