//! The section `redis`, and that its password is seen nowhere.

use std::time::Duration;

use super::*;

const HUSH: &str = "hush-hush";

fn with_variables<const N: usize>(set: [(&str, &str); N]) -> Result<Config, ConfigError> {
    Config::load_with(None, set.map(|(name, text)| (name.to_owned(), text.to_owned())))
}

fn problems(result: Result<Config, ConfigError>) -> Vec<(String, String)> {
    result.unwrap_err().problems.into_iter().map(|found| (found.path, found.problem)).collect()
}

#[test]
fn the_defaults_are_those_of_document_003() {
    let redis = Config::default().redis;
    assert_eq!((redis.enabled, redis.host.as_str(), redis.port, redis.db), (false, "localhost", 6_379, 0));
    assert_eq!((redis.password, redis.prefix.as_str()), (None, "circuit_breaker"));
}

#[test]
fn the_variables_of_document_003_mean_what_they_say_where_its_persistence_is_on() {
    for on in ["true", "True", "1", "yes", "on"] {
        let config = with_variables([
            ("ENABLE_CIRCUIT_BREAKER_PERSISTENCE", on),
            ("REDIS_HOST", "10.0.0.7"),
            ("REDIS_PORT", "6380"),
            ("REDIS_DB", "3"),
            ("REDIS_PASSWORD", HUSH),
        ])
        .unwrap();
        let expected = RedisConfig {
            enabled: true,
            host: "10.0.0.7".to_owned(),
            port: 6_380,
            db: 3,
            password: Some(Secret::new(HUSH)),
            ..RedisConfig::default()
        };
        assert_eq!(config.redis, expected);
    }
    for off in ["false", "0", "no", "off"] {
        let set = [("ENABLE_CIRCUIT_BREAKER_PERSISTENCE", off), ("REDIS_PORT", "not ours")];
        assert_eq!(with_variables(set), Ok(Config::default()));
    }
    let found = problems(with_variables([("ENABLE_CIRCUIT_BREAKER_PERSISTENCE", "ture"), ("REDIS_PORT", "not ours")]));
    assert!(found.len() == 1 && found[0].0 == "redis.enabled" && found[0].1.contains("ENABLE_"), "{found:?}");
}

#[test]
fn our_own_variables_go_over_those_of_document_003_and_those_over_a_file() {
    let file = tempfile::NamedTempFile::with_suffix(".toml").unwrap();
    std::fs::write(file.path(), "[redis]\nenabled = true\nhost = 'file'\nport = 1\nprefix = 'file'").unwrap();
    let set = [
        ("ENABLE_CIRCUIT_BREAKER_PERSISTENCE", "true"),
        ("REDIS_HOST", "document"),
        ("REDIS_PORT", "2"),
        ("SEAWALL__REDIS__PORT", "3"),
        ("SEAWALL__REDIS__TIMEOUT", "250ms"),
    ];
    let set = set.map(|(name, text)| (name.to_owned(), text.to_owned()));
    let redis = Config::load_with(Some(file.path()), set).unwrap().redis;
    assert_eq!((redis.host.as_str(), redis.port, redis.prefix.as_str()), ("document", 3, "file"));
    assert_eq!(redis.timeout, Duration::from_millis(250));
    // Off in the environment is off, whatever the file says.
    let off = [("ENABLE_CIRCUIT_BREAKER_PERSISTENCE".to_owned(), "false".to_owned())];
    assert!(!Config::load_with(Some(file.path()), off).unwrap().redis.enabled);
}

#[test]
fn a_password_is_text_whatever_it_looks_like() {
    for password in ["123456", "null", "true", "[1]", "{\"a\":1}", "\"quoted\"", "1e5"] {
        let config = with_variables([("SEAWALL__REDIS__PASSWORD", password)]).unwrap();
        assert_eq!(config.redis.password.unwrap().reveal(), password);
        let set = [("ENABLE_CIRCUIT_BREAKER_PERSISTENCE", "true"), ("REDIS_PASSWORD", password)];
        assert_eq!(with_variables(set).unwrap().redis.password.unwrap().reveal(), password);
    }
}

#[test]
fn a_password_is_seen_nowhere() {
    let text = format!("[redis]\npassword = '{HUSH}'");
    let config = Config::from_toml(&text).unwrap();
    let shown = [
        format!("{config:?}"),
        format!("{config:#?}"),
        serde_json::to_string(&config).unwrap(),
        toml::to_string(&config).unwrap(),
    ];
    for shown in shown {
        assert!(shown.contains("***") && !shown.contains(HUSH), "{shown}");
    }
    // What was shown is not taken for the password.
    let found = problems(Config::from_toml(&toml::to_string(&config).unwrap()));
    assert!(found.len() == 1 && found[0].0 == "redis.password" && found[0].1.contains("***"), "{found:?}");
}

#[test]
fn no_problem_shows_a_password() {
    for text in [
        "[redis]\npassword = 'hush-hush",
        "[redis]\npassword = hush-hush",
        "[redis]\npassword = ['hush-hush']",
        "[redis]\npassword = { hush-hush = 'hush-hush' }",
        "[redis]\npassword = 'hush-hush'\npassword = 'hush-hush'",
        "[redis]\npassword = 'hush-hush'\nport = 'none'",
        "[redis.password]\nhush-hush = 1",
    ] {
        let error = Config::from_toml(text).unwrap_err();
        assert!(!format!("{error} {error:?}").contains(HUSH), "{text}: {error}");
    }
    let number = Config::from_toml("[redis]\npassword = 271828").unwrap_err();
    assert!(!number.to_string().contains("271828"), "{number}");
}

#[test]
fn values_that_cannot_be_used_are_told() {
    let text = "[redis]\nhost = ''\nport = 0\nusername = 'me'\nprefix = ''\ntimeout = '1h'\ndb = -1\ncolour = 'red'";
    let paths: Vec<_> = problems(Config::from_toml(text)).into_iter().map(|(path, _)| path).collect();
    let fields = ["colour", "db", "host", "port", "prefix", "timeout", "username"];
    assert_eq!(paths, fields.map(|field| format!("redis.{field}")));
    assert_eq!(problems(Config::from_toml("[redis]\npassword = ''"))[0].0, "redis.password");
}

// ----- a cache among the backends

#[test]
fn a_backend_is_a_cache_in_redis_where_the_configuration_says_where_that_is() {
    let config =
        Config::from_toml("[backends.cache.redis_cache]\nhost = 'cache'\nttl = '10m'\n[backends.graph]").unwrap();
    let cache = config.backends["cache"].redis_cache.clone().unwrap();
    assert_eq!((cache.host.as_str(), cache.ttl, cache.timeout.as_millis()), ("cache", Duration::from_secs(600), 100));
    assert_eq!(config.backends["graph"].redis_cache, None);
    let set = [("SEAWALL__BACKENDS__CACHE__REDIS_CACHE__PASSWORD", "123456")];
    let cache = with_variables(set).unwrap().backends["cache"].redis_cache.clone().unwrap();
    assert_eq!(cache.password.as_ref().unwrap().reveal(), "123456");
    assert!(!format!("{cache:?}").contains("123456"));
}

#[test]
fn everything_that_is_wrong_with_a_cache_is_told_under_its_backend() {
    let text = "[backends.cache.redis_cache]\nhost = ''\nport = 0\nusername = 'me'\nprefix = ''\ntimeout = '1h'\n\
                ttl = '2h'\ntombstone_ttl = '1h'\ntls_ca_file = 'ca.pem'\ncolour = 'red'";
    let paths: Vec<_> = problems(Config::from_toml(text)).into_iter().map(|(path, _)| path).collect();
    let fields = ["colour", "host", "port", "prefix", "timeout", "tls_ca_file", "tombstone_ttl", "username"];
    assert_eq!(paths, fields.map(|field| format!("backends.cache.redis_cache.{field}")));
}

#[cfg(not(feature = "redis-tls"))]
#[test]
fn encryption_that_is_not_built_in_is_told_and_not_left_out() {
    for text in ["[redis]\ntls = true", "[backends.cache.redis_cache]\ntls = true"] {
        assert!(problems(Config::from_toml(text))[0].1.contains("redis-tls"));
    }
}
