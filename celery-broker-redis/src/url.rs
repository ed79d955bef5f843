//! Parsing the URL of a Redis. No I/O.

use std::path::PathBuf;

use celery_runtime::url::{ServiceUrl, redacted};
use celery_runtime::{ServiceError, ServiceErrorKind};
use serde_json::{Map, Value};

use crate::config::{Layout, Limits, Node, NodeAddress, RedisOptions, Tls};
use crate::transport_options;

impl RedisOptions {
    /// Parses one URL, or several with `;` between them for failover, and
    /// Celery's `broker_transport_options` or
    /// `result_backend_transport_options`.
    ///
    /// # Errors
    ///
    /// If the URL is malformed or its scheme is not one of Redis, or if an
    /// option is unknown or has an invalid value. The text names the nearest
    /// option and never a password.
    pub fn parse(url: &str, transport_options: &Map<String, Value>) -> Result<Self, ServiceError> {
        let wrong = |cause: String| {
            ServiceError::new(
                ServiceErrorKind::Invalid,
                "use",
                format!("the URL {}", redacted(url)),
                cause,
            )
        };
        let urls = ServiceUrl::parse_list(url).map_err(wrong)?;
        let mut options = Self {
            nodes: urls
                .iter()
                .map(node)
                .collect::<Result<_, _>>()
                .map_err(wrong)?,
            sentinel: None,
            address: address(&urls),
            layout: Layout::default(),
            limits: Limits::default(),
            client_name: None,
        };
        let is_sentinel = urls.iter().any(|url| url.scheme == "sentinel");
        transport_options::apply(&mut options, transport_options, is_sentinel)?;
        Ok(options)
    }
}

const DEFAULT_PORT: u16 = 6379;
const DEFAULT_SENTINEL_PORT: u16 = 26379;

fn node(url: &ServiceUrl) -> Result<Node, String> {
    let (address, db) = match url.scheme.as_str() {
        "redis" => (tcp(url, DEFAULT_PORT, None), db_of_path(url)?),
        "rediss" => (tcp(url, DEFAULT_PORT, Some(tls(url)?)), db_of_path(url)?),
        "sentinel" => (tcp(url, DEFAULT_SENTINEL_PORT, None), db_of_path(url)?),
        "unix" | "redis+socket" | "socket" | "redis+unix" => (socket(url)?, db_of_query(url)?),
        other => {
            return Err(format!(
                "{other}:// is not one of redis://, rediss://, unix://, redis+socket://, \
                 socket:// and sentinel://"
            ));
        }
    };
    Ok(Node {
        address,
        user: url
            .user
            .clone()
            .or_else(|| url.query("username").map(str::to_owned)),
        password: url
            .password
            .clone()
            .or_else(|| url.query("password").map(str::to_owned)),
        db,
    })
}

fn tcp(url: &ServiceUrl, port: u16, tls: Option<Tls>) -> NodeAddress {
    NodeAddress::Tcp {
        host: url.host.clone().unwrap_or_else(|| "localhost".to_owned()),
        port: url.port.unwrap_or(port),
        tls,
    }
}

fn socket(url: &ServiceUrl) -> Result<NodeAddress, String> {
    // In `socket://run/redis.sock` the host is the first part of the path.
    let path = match &url.host {
        Some(host) => format!("/{host}{}", url.path),
        None => url.path.clone(),
    };
    match path.as_str() {
        "" | "/" => Err("it has no path of a socket".to_owned()),
        path => Ok(NodeAddress::UnixSocket(path.into())),
    }
}

fn db_of_path(url: &ServiceUrl) -> Result<u32, String> {
    match url.path.trim_start_matches('/') {
        "" => db_of_query(url),
        db => number_of_db(db),
    }
}

fn db_of_query(url: &ServiceUrl) -> Result<u32, String> {
    let db = url.query("virtual_host").or_else(|| url.query("db"));
    db.map_or(Ok(0), |db| number_of_db(db.trim_start_matches('/')))
}

fn number_of_db(text: &str) -> Result<u32, String> {
    text.parse()
        .map_err(|_| format!("{text:?} is not a database number"))
}

fn tls(url: &ServiceUrl) -> Result<Tls, String> {
    let path = |name| {
        url.query(name)
            .filter(|path| !path.is_empty())
            .map(PathBuf::from)
    };
    let accept_invalid_certificate = match url.query("ssl_cert_reqs").unwrap_or("required") {
        "required" | "CERT_REQUIRED" | "optional" | "CERT_OPTIONAL" => false,
        "none" | "CERT_NONE" => true,
        other => {
            return Err(format!(
                "ssl_cert_reqs is required, optional or none, not {other:?}"
            ));
        }
    };
    let accept_any_hostname = matches!(
        url.query("ssl_check_hostname"),
        Some("false" | "False" | "0" | "no")
    );
    let tls = Tls {
        accept_invalid_certificate,
        accept_any_hostname,
        ca_certificates: path("ssl_ca_certs"),
        certificate: path("ssl_certfile"),
        key: path("ssl_keyfile"),
    };
    if tls.certificate.is_some() == tls.key.is_some() {
        Ok(tls)
    } else {
        Err("ssl_certfile and ssl_keyfile must both be set".to_owned())
    }
}

/// Formats the URLs. Their queries are left out, as they may contain passwords.
fn address(urls: &[ServiceUrl]) -> String {
    let one = |url: &ServiceUrl| {
        let host = url.host.as_deref().unwrap_or_default();
        let port = url.port.map(|port| format!(":{port}")).unwrap_or_default();
        if host.contains(':') {
            format!("{}://[{host}]{port}{}", url.scheme, url.path)
        } else {
            format!("{}://{host}{port}{}", url.scheme, url.path)
        }
    };
    urls.iter().map(one).collect::<Vec<_>>().join(";")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;

    fn parse(url: &str) -> Result<RedisOptions, ServiceError> {
        RedisOptions::parse(url, &Map::new())
    }

    fn parse_with(url: &str, options: &Value) -> Result<RedisOptions, ServiceError> {
        RedisOptions::parse(url, options.as_object().expect("an object"))
    }

    #[test]
    fn plain_url_has_the_defaults_of_kombu() {
        let options = parse("redis://").unwrap();
        let address = NodeAddress::Tcp {
            host: "localhost".into(),
            port: 6379,
            tls: None,
        };
        assert_eq!(options.nodes[0].address, address);
        assert_eq!(options.db(), 0);
        assert_eq!(options.layout, Layout::default());
        assert_eq!(options.visibility_timeout(), Duration::from_secs(3600));
    }

    #[test]
    fn url_contains_credentials_and_database() {
        let options = parse("redis://ann:p%40ss@h:7000/3").unwrap();
        let node = &options.nodes[0];
        assert_eq!(node.user.as_deref(), Some("ann"));
        assert_eq!(node.password.as_deref(), Some("p@ss"));
        assert_eq!(node.db, 3);
        assert_eq!(parse("redis://h?virtual_host=4").unwrap().db(), 4);
        assert!(
            parse("redis://h/four")
                .unwrap_err()
                .to_string()
                .contains("\"four\"")
        );
    }

    #[test]
    fn unix_socket_url_is_parsed_in_every_form() {
        for url in [
            "unix:///run/redis.sock?db=5",
            "redis+socket:///run/redis.sock?virtual_host=5",
            "socket:///run/redis.sock?virtual_host=/5",
            "socket://run/redis.sock?virtual_host=5",
        ] {
            let options = parse(url).unwrap();
            assert_eq!(
                options.nodes[0].address,
                NodeAddress::UnixSocket("/run/redis.sock".into()),
                "{url}"
            );
            assert_eq!(options.db(), 5, "{url}");
        }
        assert!(parse("unix://").is_err());
    }

    #[test]
    fn tls_options_come_from_the_query() {
        let url =
            "rediss://h?ssl_cert_reqs=CERT_NONE&ssl_ca_certs=/ca.pem&ssl_check_hostname=false";
        let NodeAddress::Tcp { tls: Some(tls), .. } = &parse(url).unwrap().nodes[0].address else {
            panic!("no TLS");
        };
        assert!(tls.accept_invalid_certificate && tls.accept_any_hostname);
        assert_eq!(tls.ca_certificates.as_deref(), Some("/ca.pem".as_ref()));
        assert!(parse("rediss://h?ssl_cert_reqs=maybe").is_err());
        assert!(parse("rediss://h?ssl_certfile=/c.pem").is_err());
    }

    #[test]
    fn sentinel_url_requires_master_name() {
        let error = parse("sentinel://a;sentinel://b:1").unwrap_err();
        assert!(error.to_string().contains("master_name"), "{error}");
        let options = json!({"master_name": "m", "sentinel_kwargs": {"password": "s"}});
        let options = parse_with("sentinel://:pw@a;sentinel://b:1/2", &options).unwrap();
        assert_eq!(options.nodes.len(), 2);
        let sentinel = options.sentinel.as_ref().unwrap();
        assert_eq!(
            (sentinel.master.as_str(), sentinel.password.as_deref()),
            ("m", Some("s"))
        );
    }

    #[test]
    fn printed_options_contain_no_password() {
        let url = "redis://ann:hidden1@h/1;redis://h2?password=hidden2";
        let options = json!({"sentinel_kwargs": {"password": "hidden3"}});
        let options = parse_with(url, &options).unwrap();
        let shown = format!("{options:?} {}", options.address());
        assert!(!shown.contains("hidden"), "{shown}");
        let error = parse("redis://ann:hidden1@h/x").unwrap_err();
        assert!(!format!("{error} {error:?}").contains("hidden"), "{error}");
    }

    #[test]
    fn unsupported_scheme_is_rejected() {
        let error = parse("amqp://h").unwrap_err();
        assert_eq!(error.kind(), ServiceErrorKind::Invalid);
        assert!(error.to_string().contains("redis://"), "{error}");
    }
}
