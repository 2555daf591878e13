//! Whether Redis lets this server read Rails' keys, and what a person has to change where it does not.

use std::time::Duration;

use tokio::time::sleep;

use super::token::KEYS;
use crate::redis_client::{ConnectionError, Denial, Link};

/// Follows [`KEYS`] in the key that is read to find out. No token has a control character, so nobody has this key, and
/// Redis' `ACL LOG` and `MONITOR` show what it is for.
const NO_TOKEN: &str = "\u{7f}rights";

/// Pause between two attempts while Redis does not answer, doubled up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Reads a key as soon as Redis answers, and reports what has to be changed if that is refused. Ends then.
pub async fn check_rights(link: Link) {
    let (key, mut pause) = (format!("{KEYS}{NO_TOKEN}"), FIRST_PAUSE);
    loop {
        match link.get(&key).await {
            Ok(_) => return,
            Err(ConnectionError::Denied(denial)) => {
                let mend = mend(denial);
                tracing::error!("redis refuses lookups, every browser is served as a visitor: {mend}");
                return;
            }
            Err(error) => tracing::debug!(%error, "cannot check the rights in redis yet"),
        }
        sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// What has to be changed.
pub(super) fn mend(denial: Denial) -> &'static str {
    match denial {
        Denial::Rights => {
            "the user of REDIS_URL may not read the keys in which Rails says who is signed in; \
             let an administrator of Redis run ACL SETUSER <user> +get ~/current_users/* \
             (without the last word if the user may use all keys: Redis refuses it then)"
        }
        Denial::Password => "Redis wants a password; add it to REDIS_URL, as in redis://:password@host:6379/0",
        Denial::Command => {
            "Redis does not know GET; do not rename or disable it in redis.conf, \
             and let REDIS_URL lead to Redis itself"
        }
        Denial::Cluster => {
            "REDIS_URL leads to one node of a Redis Cluster, which has only some of the keys; \
             let it lead to a Redis that is no cluster, the same as Rails uses"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::Token;

    #[test]
    fn no_browser_can_have_the_key_that_is_read() {
        assert_eq!(Token::parse(NO_TOKEN), None);
    }
}
