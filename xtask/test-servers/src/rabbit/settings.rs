//! Settings of a private RabbitMQ node and its configuration files.

use std::ops::Range;

use serde_json::{Value, json};

use super::{RabbitServer, Tls};

/// Settings of a [`RabbitServer`].
#[derive(Debug, Clone, Default)]
#[must_use]
pub struct RabbitServerBuilder {
    pub(super) tls: bool,
    pub(super) client_certificates: bool,
    users: Vec<(String, String)>,
    lines: Vec<(String, String)>,
}

impl RabbitServerBuilder {
    /// Listens with TLS on an additional port.
    pub fn tls(mut self) -> Self {
        self.tls = true;
        self
    }

    /// Listens with TLS and requires a client certificate of the same authority, such as
    /// [`RabbitServer::client_certificate`].
    pub fn client_certificates(mut self) -> Self {
        self.client_certificates = true;
        self.tls()
    }

    /// Adds a user with all permissions in all virtual hosts, in addition to `guest`.
    pub fn user(mut self, name: &str, password: &str) -> Self {
        self.users.push((name.to_owned(), password.to_owned()));
        self
    }

    /// Adds a line of `rabbitmq.conf`, such as `consumer_timeout` and `10000`.
    pub fn setting(mut self, key: &str, value: &str) -> Self {
        self.lines.push((key.to_owned(), value.to_owned()));
        self
    }

    /// Starts the node and waits until it is ready.
    ///
    /// # Panics
    ///
    /// Panics if `rabbitmq-server` is missing or is not ready within a minute.
    #[must_use]
    pub fn start(&self) -> RabbitServer {
        RabbitServer::start_with(self)
    }

    /// Returns the content of `rabbitmq.conf`.
    pub(super) fn configuration(&self, port: u16, tls: Option<&Tls>) -> String {
        let mut lines = vec![
            ("listeners.tcp.1", format!("127.0.0.1:{port}")),
            ("num_acceptors.tcp", "2".to_owned()),
            ("loopback_users", "none".to_owned()),
            // Low limits, so that a full disk or a busy machine does not block publishers.
            ("disk_free_limit.absolute", "1MB".to_owned()),
            ("vm_memory_high_watermark.absolute", "2GB".to_owned()),
        ];
        if let Some(tls) = tls {
            let (verify, fail) = if self.client_certificates {
                ("verify_peer", "true")
            } else {
                ("verify_none", "false")
            };
            let files = &tls.certificates;
            lines.extend([
                ("listeners.ssl.1", format!("127.0.0.1:{}", tls.port)),
                ("num_acceptors.ssl", "2".to_owned()),
                (
                    "ssl_options.cacertfile",
                    files.authority.display().to_string(),
                ),
                (
                    "ssl_options.certfile",
                    files.certificate.display().to_string(),
                ),
                ("ssl_options.keyfile", files.key.display().to_string()),
                ("ssl_options.verify", verify.to_owned()),
                ("ssl_options.fail_if_no_peer_cert", fail.to_owned()),
            ]);
        }
        // RabbitMQ rejects duplicate keys.
        lines.retain(|(key, _)| self.lines.iter().all(|(own, _)| own != key));
        let own = self
            .lines
            .iter()
            .map(|(key, value)| (&**key, value.clone()));
        lines
            .into_iter()
            .chain(own)
            .map(|(key, value)| format!("{key} = {value}\n"))
            .collect()
    }

    /// Returns the users, the virtual host `/` and numbered virtual hosts in the format of
    /// `rabbitmqctl import_definitions`.
    pub(super) fn definitions(&self, vhosts: Range<usize>) -> Value {
        let guest = ("guest".to_owned(), "guest".to_owned());
        let users: Vec<_> = std::iter::once(&guest).chain(&self.users).collect();
        let vhosts: Vec<_> = std::iter::once("/".to_owned())
            .chain(vhosts.map(vhost))
            .collect();
        let user = |(name, password): &&(String, String)| json!({ "name": name, "password": password, "tags": "administrator" });
        let permissions = users.iter().flat_map(|(name, _)| {
            vhosts.iter().map(move |vhost| {
                let all = ".*";
                json!({ "user": name, "vhost": vhost, "configure": all, "write": all, "read": all })
            })
        });
        json!({
            "users": users.iter().map(user).collect::<Value>(),
            "vhosts": vhosts.iter().map(|name| json!({ "name": name })).collect::<Value>(),
            "permissions": permissions.collect::<Value>(),
        })
    }
}

/// Returns the name of the virtual host with this number.
pub(super) fn vhost(number: usize) -> String {
    format!("t{number}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn setting_replaces_the_default() {
        let builder = RabbitServer::builder()
            .setting("consumer_timeout", "10000")
            .setting("num_acceptors.tcp", "1");
        let text = builder.configuration(5672, None);
        assert!(text.contains("listeners.tcp.1 = 127.0.0.1:5672\n"));
        assert!(text.contains("consumer_timeout = 10000\n"));
        let acceptors = text
            .lines()
            .filter(|line| line.starts_with("num_acceptors"));
        assert_eq!(acceptors.collect::<Vec<_>>(), ["num_acceptors.tcp = 1"]);
    }

    #[test]
    fn every_user_has_permissions_in_every_virtual_host() {
        let builder = RabbitServer::builder().user("ann", "word");
        let definitions = builder.definitions(4..6);
        let names = |list: &str, key: &str| -> Vec<String> {
            let list = definitions[list].as_array().unwrap().iter();
            list.map(|item| item[key].as_str().unwrap().to_owned())
                .collect()
        };
        assert_eq!(names("users", "name"), ["guest", "ann"]);
        assert_eq!(names("users", "password"), ["guest", "word"]);
        assert_eq!(names("vhosts", "name"), ["/", "t4", "t5"]);
        let rights = names("permissions", "user").into_iter();
        let rights: Vec<_> = rights.zip(names("permissions", "vhost")).collect();
        assert_eq!(rights.len(), 6);
        assert!(rights.contains(&("ann".to_owned(), "t5".to_owned())));
    }
}
