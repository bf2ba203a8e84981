//! Which servers a command is about: `SERVICE/SERVER`, with `*` for every one.

use std::fmt;
use std::str::FromStr;

use towpath_engine::ServerPath;

/// Servers of services.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Selector {
    service: Option<String>,
    server: Option<String>,
}

impl Selector {
    /// Where they are in the API.
    pub(crate) fn path(&self) -> ServerPath {
        ServerPath { service: self.service.clone(), server: self.server.clone() }
    }
}

impl FromStr for Selector {
    type Err = String;

    /// The first slash parts the two; one in a name is written `%2F`.
    fn from_str(text: &str) -> Result<Selector, String> {
        let Some((service, server)) = text.split_once('/') else {
            return Err("write SERVICE/SERVER, as web/FE-1, 'web/*' or '*/FE-1'".to_owned());
        };
        let part = |name: &str, what: &str| match name {
            "" => Err(format!("the name of the {what} is missing; '*' is every one")),
            "*" => Ok(None),
            name => Ok(Some(name.replace("%2F", "/").replace("%2f", "/"))),
        };
        Ok(Selector { service: part(service, "service")?, server: part(server, "server")? })
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let part = |name: &Option<String>| name.clone().unwrap_or_else(|| "*".to_owned());
        write!(f, "{}/{}", part(&self.service), part(&self.server))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_named_with_their_service() {
        for (text, uri) in [
            ("web/FE-1", "/v1/services/web/servers/FE-1/drain"),
            ("front end/*", "/v1/services/front%20end/servers/*/drain"),
            ("*/192.0.2.1:443", "/v1/services/*/servers/192.0.2.1%3A443/drain"),
            ("*/*", "/v1/services/*/servers/*/drain"),
            ("100%/FE-1", "/v1/services/100%25/servers/FE-1/drain"),
        ] {
            let selector: Selector = text.parse().unwrap();
            assert_eq!((selector.path().uri("drain").as_str(), selector.to_string().as_str()), (uri, text));
        }
        let selector: Selector = "a%2Fb/c%2fd".parse().unwrap();
        assert_eq!(selector.path().uri(""), "/v1/services/a%2Fb/servers/c%2Fd");
    }

    #[test]
    fn half_a_name_is_refused_with_what_to_write() {
        for (text, expected) in
            [("web", "SERVICE/SERVER"), ("web/", "name of the server"), ("/FE-1", "name of the service")]
        {
            let error = text.parse::<Selector>().unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
