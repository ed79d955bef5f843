//! Parsing of the URLs of brokers and result backends: [`ServiceUrl`]. Pure.

use std::fmt;

/// The parts of a URL in Celery's form,
/// `scheme://user:password@host:port/path?query`, with percent-escapes decoded.
///
/// [`Display`](fmt::Display) and [`Debug`](fmt::Debug) leave out the password.
///
/// ```
/// use celery_runtime::url::ServiceUrl;
///
/// let url = ServiceUrl::parse("redis://:secret@localhost:6380/1?ssl_cert_reqs=none")?;
/// assert_eq!(url.port, Some(6380));
/// assert_eq!(url.query("ssl_cert_reqs"), Some("none"));
/// assert_eq!(url.to_string(), "redis://:***@localhost:6380/1");
/// # Ok::<(), String>(())
/// ```
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ServiceUrl {
    /// The part before `://`, in lower case.
    pub scheme: String,
    /// The user; `None` if missing or empty.
    pub user: Option<String>,
    /// The password; `None` if missing or empty.
    pub password: Option<String>,
    /// The host; `None` if missing or empty, as in the URL of a socket.
    pub host: Option<String>,
    /// The port, if given.
    pub port: Option<u16>,
    /// The path with its leading slash; empty if missing.
    pub path: String,
    /// The pairs of the query in their order.
    pub query: Vec<(String, String)>,
}

impl ServiceUrl {
    /// Parses a URL.
    ///
    /// # Errors
    ///
    /// A text with the reason.
    pub fn parse(url: &str) -> Result<Self, String> {
        let (scheme, rest) = url
            .split_once("://")
            .ok_or("there is no scheme such as redis:// in it")?;
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = match rest.find('/') {
            Some(slash) => rest.split_at(slash),
            None => (rest, ""),
        };
        let (credentials, host) = match authority.rsplit_once('@') {
            Some((credentials, host)) => (Some(credentials), host),
            None => (None, authority),
        };
        let (user, password) = match credentials
            .map(|text| text.split_once(':').unwrap_or((text, "")))
        {
            Some((user, password)) => (non_empty(unescape(user)?), non_empty(unescape(password)?)),
            None => (None, None),
        };
        let (host, port) = split_port(host)?;
        Ok(Self {
            scheme: scheme.to_ascii_lowercase(),
            user,
            password,
            host: non_empty(unescape(host)?),
            port,
            path: unescape(path)?,
            query: pairs(query)?,
        })
    }

    /// Parses several URLs separated by `;`, in order of preference. A URL without a
    /// scheme has the scheme of the first one.
    ///
    /// # Errors
    ///
    /// A text with the reason, for the first URL that cannot be parsed, or if there
    /// is none.
    pub fn parse_list(urls: &str) -> Result<Vec<Self>, String> {
        let mut list: Vec<Self> = Vec::new();
        for url in urls.split(';').map(str::trim).filter(|url| !url.is_empty()) {
            let parsed = match list.first() {
                Some(first) if !url.contains("://") => {
                    Self::parse(&format!("{}://{url}", first.scheme))?
                }
                _ => Self::parse(url)?,
            };
            list.push(parsed);
        }
        if list.is_empty() {
            return Err("it is empty".to_owned());
        }
        Ok(list)
    }

    /// Returns the value of `key` in the query; of several the last one.
    pub fn query(&self, key: &str) -> Option<&str> {
        self.query
            .iter()
            .rev()
            .find(|(name, _)| name == key)
            .map(|(_, value)| value.as_str())
    }
}

/// Writes the URL without its query, and `***` for the password.
impl fmt::Display for ServiceUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://", self.scheme)?;
        match (&self.user, &self.password) {
            (None, None) => {}
            (user, None) => write!(f, "{}@", user.as_deref().unwrap_or_default())?,
            (user, Some(_)) => write!(f, "{}:***@", user.as_deref().unwrap_or_default())?,
        }
        f.write_str(self.host.as_deref().unwrap_or_default())?;
        if let Some(port) = self.port {
            write!(f, ":{port}")?;
        }
        f.write_str(&self.path)
    }
}

/// Writes the URL as `Display` does, so that no log shows a password.
impl fmt::Debug for ServiceUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ServiceUrl({self})")
    }
}

/// Returns `url`, or several separated by `;`, with `***` for each password.
pub fn redacted(url: &str) -> String {
    url.split(';')
        .map(|one| match (one.find("://"), one.rfind('@')) {
            (scheme, Some(at)) => {
                let start = scheme.map_or(0, |found| found + 3);
                match one
                    .get(start..at)
                    .and_then(|credentials| credentials.find(':'))
                {
                    Some(colon) => format!("{}:***{}", &one[..start + colon], &one[at..]),
                    None => one.to_owned(),
                }
            }
            _ => one.to_owned(),
        })
        .collect::<Vec<_>>()
        .join(";")
}

fn split_port(host: &str) -> Result<(&str, Option<u16>), String> {
    // An IPv6 address has its colons in brackets.
    let (host, port) = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, rest)) => (address, rest.strip_prefix(':')),
        None => match host.rsplit_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (host, None),
        },
    };
    let port = match port.filter(|port| !port.is_empty()) {
        None => None,
        Some(port) => Some(
            port.parse()
                .map_err(|_| format!("{port:?} is not a port number"))?,
        ),
    };
    Ok((host, port))
}

fn pairs(query: &str) -> Result<Vec<(String, String)>, String> {
    query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            Ok((unescape(name)?, unescape(value)?))
        })
        .collect()
}

fn unescape(text: &str) -> Result<String, String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        if byte != b'%' {
            bytes.push(byte);
            rest = tail;
            continue;
        }
        let digits = tail
            .get(..2)
            .and_then(|digits| std::str::from_utf8(digits).ok());
        let value = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        bytes.push(value.ok_or("there is a % without two hexadecimal digits; write %25 for it")?);
        rest = &tail[2..];
    }
    String::from_utf8(bytes).map_err(|_| "its percent-escapes are not UTF-8".to_owned())
}

fn non_empty(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn url_is_parsed_into_its_parts() {
        let url =
            ServiceUrl::parse("rediss://me:p%40ss:w@h.example:6380/2?ssl_cert_reqs=none").unwrap();
        assert_eq!(url.scheme, "rediss");
        assert_eq!(url.user.as_deref(), Some("me"));
        assert_eq!(url.password.as_deref(), Some("p@ss:w"));
        assert_eq!(url.host.as_deref(), Some("h.example"));
        assert_eq!(url.port, Some(6380));
        assert_eq!(url.path, "/2");
        assert_eq!(url.query("ssl_cert_reqs"), Some("none"));
        assert_eq!(url.to_string(), "rediss://me:***@h.example:6380/2");
    }

    #[test]
    fn socket_and_ipv6_urls_are_parsed() {
        let socket = ServiceUrl::parse("redis+socket:///run/redis.sock?virtual_host=3").unwrap();
        assert_eq!(
            (socket.host, socket.path.as_str()),
            (None, "/run/redis.sock")
        );
        let v6 = ServiceUrl::parse("redis://:pw@[::1]:6379").unwrap();
        assert_eq!((v6.host.as_deref(), v6.port), (Some("::1"), Some(6379)));
        assert_eq!((v6.user, v6.password.as_deref()), (None, Some("pw")));
    }

    #[test]
    fn url_list_shares_first_scheme() {
        let list = ServiceUrl::parse_list("sentinel://a:1;b:2; sentinel://c").unwrap();
        let hosts: Vec<_> = list.iter().filter_map(|url| url.host.as_deref()).collect();
        assert_eq!(hosts, ["a", "b", "c"]);
        assert!(list.iter().all(|url| url.scheme == "sentinel"));
        assert!(ServiceUrl::parse_list(" ; ").is_err());
    }

    #[test]
    fn password_is_redacted() {
        assert_eq!(
            redacted("redis://u:s3@cret@h/1;redis://:x@b"),
            "redis://u:***@h/1;redis://:***@b"
        );
        assert_eq!(redacted("nonsense"), "nonsense");
        let url = ServiceUrl::parse("redis://u:secret@h").unwrap();
        assert!(!format!("{url:?}").contains("secret"));
    }

    #[test]
    fn malformed_url_is_refused_with_reason() {
        assert!(
            ServiceUrl::parse("localhost:6379")
                .unwrap_err()
                .contains("scheme")
        );
        assert!(
            ServiceUrl::parse("redis://h:99999")
                .unwrap_err()
                .contains("port")
        );
        assert!(
            ServiceUrl::parse("redis://%zz@h")
                .unwrap_err()
                .contains('%')
        );
    }
}
