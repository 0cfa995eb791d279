use std::time::Duration;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::names::{ALIASES, MOVED, REDIS, VARIABLES};
use super::*;

fn variables<const N: usize>(variables: [(&str, &str); N]) -> Vec<(String, String)> {
    variables.into_iter().map(|(name, text)| (name.to_owned(), text.to_owned())).collect()
}

fn with_variables<const N: usize>(set: [(&str, &str); N]) -> Result<Config, ConfigError> {
    Config::load_with(None, variables(set))
}

fn tree(config: &Config) -> Value {
    serde_json::to_value(config).unwrap()
}

/// The path and the problem of everything that is wrong.
fn problems(result: Result<Config, ConfigError>) -> Vec<(String, String)> {
    result.unwrap_err().problems.into_iter().map(|found| (found.path, found.problem)).collect()
}

fn paths(result: Result<Config, ConfigError>) -> Vec<String> {
    problems(result).into_iter().map(|(path, _)| path).collect()
}

fn file(text: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::with_suffix(".toml").unwrap();
    std::fs::write(file.path(), text).unwrap();
    file
}

#[test]
fn the_defaults_are_the_figures_of_the_documents() {
    let figures = [
        ("/breaker/failure_threshold", json!(5), "documents 000 to 004"),
        ("/breaker/success_threshold", json!(2), "documents 000, 001 and 004"),
        ("/breaker/reset_timeout", json!("1m"), "documents 000 to 004: 60 s"),
        ("/breaker/rolling_window", json!("5m"), "document 002: 300 s"),
        ("/breaker/gradual_recovery", json!(true), "document 002"),
        ("/breaker/recovery_factor", json!(0.5), "document 002"),
        ("/breaker/excluded_errors", json!([]), "documents 000 and 001"),
        ("/saga/timeout", json!("30s"), "document 000"),
        ("/call/retry/max_retries", json!(3), "document 000: saga.max_retries"),
        ("/call/timeout", json!("10s"), "document 000: a rollback"),
        ("/saga/rollback_timeout", json!("10s"), "document 000"),
        ("/health/interval", json!("30s"), "documents 000 and 001"),
        ("/health/timeout", json!("5s"), "documents 000 and 001"),
        ("/health/alert_threshold", json!(3), "documents 000 and 001"),
        ("/sync/batch", json!(100), "documents 000 and 001"),
        ("/queue/max_entries", json!(10_000), "documents 000 and 001"),
        ("/fallback/cache/max_size", json!(1_000), "documents 000 and 001"),
        ("/fallback/mode_when_normal", json!("disabled"), "document 004"),
        ("/fallback/mode_when_degraded", json!("queue_writes"), "document 004"),
    ];
    let defaults = tree(&Config::default());
    for (at, figure, document) in figures {
        assert_eq!(defaults.pointer(at), Some(&figure), "{at}, {document}");
    }
}

#[test]
fn the_defaults_can_be_used() {
    assert_eq!(Config::default().validate(), Ok(()));
    assert_eq!(Config::from_toml(""), Ok(Config::default()));
    assert_eq!(with_variables([]), Ok(Config::default()));
}

#[test]
fn what_is_written_as_toml_is_read_back() {
    let mut config = Config { data_dir: "/var/lib/seawall".into(), ..Config::default() };
    config.limits.dimension = Some(384);
    config.queue.retry_after = Duration::from_millis(1_500);
    config.breaker.failure_threshold = 7;
    config.metrics.listen = Some("[::1]:9464".parse().unwrap());
    config.call.retry.budget.per_call = 0.25;
    #[allow(clippy::needless_update, reason = "there is more with features")]
    let cache = BackendConfig {
        breaker: BreakerConfig { success_threshold: 3, ..config.breaker.clone() },
        call: CallConfig { max_concurrent: 8, ..config.call.clone() },
        ..BackendConfig::default()
    };
    config.backends.insert("cache".to_owned(), cache);
    let written = toml::to_string(&config).unwrap();
    assert_eq!(Config::from_toml(&written), Ok(config), "{written}");
}

#[test]
fn each_source_goes_over_the_one_before_it() {
    let file = file("[breaker]\nfailure_threshold = 6\nsuccess_threshold = 6\n[limits]\nbatch = 6");
    let config = Config::load_with(
        Some(file.path()),
        variables([
            ("CIRCUIT_FAILURE_THRESHOLD", "7"),
            ("CIRCUIT_SUCCESS_THRESHOLD", "7"),
            ("SEAWALL__BREAKER__SUCCESS_THRESHOLD", "8"),
        ]),
    )
    .unwrap();
    assert_eq!(config.limits.batch, 6);
    assert_eq!(config.limits.depth, 16);
    assert_eq!(config.breaker.failure_threshold, 7);
    assert_eq!(config.breaker.success_threshold, 8);
}

#[test]
fn every_variable_of_document_004_sets_its_key() {
    let config = with_variables([
        ("CIRCUIT_FAILURE_THRESHOLD", "3"),
        ("CIRCUIT_SUCCESS_THRESHOLD", "1"),
        ("CIRCUIT_TIMEOUT", "30.5"),
        ("FALLBACK_MODE", "local_storage"),
        ("FALLBACK_DB_PATH", "~/.graphiti_fallback.db"),
        ("HOME", "/home/someone"),
    ])
    .unwrap();
    assert_eq!(config.breaker.failure_threshold, 3);
    assert_eq!(config.breaker.success_threshold, 1);
    assert_eq!(config.breaker.reset_timeout, Duration::from_millis(30_500));
    assert_eq!(config.fallback.mode_when_degraded, seawall_actors::fallback::Mode::LocalStorage);
    assert_eq!(config.data_dir, PathBuf::from("/home/someone/.graphiti_fallback.db"));
}

#[test]
fn every_named_variable_and_alias_names_a_key_that_exists() {
    let defaults = tree(&Config::default());
    let keys = ALIASES.iter().map(|(section, _, key)| format!("{section}.{key}"));
    let redis = REDIS.iter().filter(|_| cfg!(feature = "redis"));
    for key in keys.chain(VARIABLES.iter().chain(MOVED).chain(redis).map(|(_, path)| (*path).to_owned())) {
        assert!(defaults.pointer(&format!("/{}", key.replace('.', "/"))).is_some(), "{key}");
    }
}

#[test]
fn every_alias_of_a_file_gives_way_to_the_key_in_the_environment() {
    let defaults = tree(&Config::default());
    for (section, alias, key) in ALIASES {
        let at = format!("/{section}/{key}").replace('.', "/");
        let value = serde_json::to_string(defaults.pointer(&at).unwrap()).unwrap();
        let file = file(&format!("[{section}]\n{alias} = {value}"));
        let variable = format!("SEAWALL__{section}__{key}").to_uppercase().replace('.', "__");
        let loaded = Config::load_with(Some(file.path()), [(variable, value.trim_matches('"').to_owned())]);
        assert_eq!(loaded, Ok(Config::default()), "{section}.{alias}");
    }
}

#[test]
fn a_key_under_two_names_in_one_file_is_refused() {
    let text = "[queue]\nmax_queue_size = 500\nmax_entries = 600\n[backends.graph.breaker]\ntimeout_seconds = 1\nreset_timeout = 2";
    assert_eq!(paths(Config::from_toml(text)), ["backends.graph.breaker.timeout_seconds", "queue.max_queue_size"]);
}

#[test]
fn durations_are_text_or_seconds_wherever_they_come_from() {
    for text in ["reset_timeout = \"1m 30s\"", "reset_timeout = 90", "timeout_seconds = 90.0", "reset_timeout = \"90\""]
    {
        let config = Config::from_toml(&format!("[breaker]\n{text}")).unwrap();
        assert_eq!(config.breaker.reset_timeout, Duration::from_secs(90), "{text}");
    }
    for text in ["90", "90.0", "90s", "1m30s"] {
        let config = with_variables([("SEAWALL__BREAKER__RESET_TIMEOUT", text)]).unwrap();
        assert_eq!(config.breaker.reset_timeout, Duration::from_secs(90), "{text}");
    }
    for text in ["-1", "nan", "inf", "1e400", "soon"] {
        let result = Config::from_toml(&format!("[queue]\nretry_after = \"{text}\""));
        assert_eq!(paths(result), ["queue.retry_after"], "{text}");
    }
}

#[test]
fn values_are_not_bent_until_they_fit() {
    let text = "[limits]\nbatch = 5.7\ndepth = true\nhits = \"12\"\nkey_bytes = -1";
    assert_eq!(paths(Config::from_toml(text)), ["limits.batch", "limits.depth", "limits.hits", "limits.key_bytes"]);
}

#[test]
fn a_variable_is_a_number_or_a_text_as_its_key_needs() {
    let config = with_variables([
        ("SEAWALL__DATA_DIR", "1234"),
        ("SEAWALL__METRICS__RUNTIME", "true"),
        ("SEAWALL__METRICS__LISTEN", "127.0.0.1:9464"),
        ("SEAWALL__BREAKER__EXCLUDED_ERRORS", r#"["23505", "40001"]"#),
        ("SEAWALL__LIMITS__DIMENSION", "384"),
    ])
    .unwrap();
    assert_eq!(config.data_dir, PathBuf::from("1234"));
    assert_eq!(config.metrics.runtime.as_deref(), Some("true"));
    assert_eq!(config.metrics.listen, Some("127.0.0.1:9464".parse().unwrap()));
    assert_eq!(config.breaker.excluded_errors, ["23505", "40001"]);
    assert_eq!(config.limits.dimension, Some(384));
}

#[test]
fn an_empty_variable_counts_as_not_set() {
    assert_eq!(
        with_variables([("SEAWALL__DATA_DIR", ""), ("FALLBACK_MODE", ""), ("SEAWALL__NOPE", "")]),
        Ok(Config::default())
    );
}

#[test]
fn variables_of_others_are_left_alone() {
    let set =
        [("PATH", "/bin"), ("SEAWALL_THEME", "dark"), ("BREAKER__FAILURE_THRESHOLD", "0"), ("REDIS_HOST", "here")];
    assert_eq!(with_variables(set), Ok(Config::default()));
}

#[test]
fn variables_without_a_meaning_here_are_told_without_their_values() {
    let unused = |set: &[(&str, &str)]| {
        let set = set.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned()));
        Environment::read(set).unused.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(unused(&[("REDIS_HOST", "localhost"), ("REDIS_PASSWORD", "secret")]), Vec::<String>::new());
    assert!(unused(&[("FALLBACK_CACHE_DIR", "~/.cache")])[0].starts_with("FALLBACK_CACHE_DIR: not used"));
    assert_eq!(unused(&[("ENABLE_CIRCUIT_BREAKER_PERSISTENCE", "false"), ("REDIS_HOST", "localhost")]).len(), 1);
    let all = unused(&[
        ("ENABLE_CIRCUIT_BREAKER_PERSISTENCE", "true"),
        ("REDIS_HOST", "localhost"),
        ("REDIS_PORT", "6379"),
        ("REDIS_DB", "0"),
        ("REDIS_PASSWORD", "secret"),
    ]);
    assert_eq!(all.len(), if cfg!(feature = "redis") { 0 } else { 4 });
    assert!(all.iter().all(|told| !told.contains("secret") && told.contains("feature `redis`")), "{all:?}");
}

#[test]
fn a_backend_has_the_breaker_of_all_where_it_sets_none_of_its_own() {
    let file =
        file("[breaker]\nfailure_threshold = 7\n[backends.cache.breaker]\nsuccess_threshold = 3\n[backends.graph]");
    let config = Config::load_with(
        Some(file.path()),
        variables([
            ("CIRCUIT_TIMEOUT", "30"),
            ("SEAWALL__BACKENDS__CACHE__BREAKER__TIMEOUT_SECONDS", "10"),
            ("SEAWALL__BACKENDS__VECTOR__BREAKER__FAILURE_THRESHOLD", "9"),
        ]),
    )
    .unwrap();
    let figures = |name: &str| {
        let breaker = config.breaker_of(&name.into());
        (breaker.failure_threshold, breaker.success_threshold, breaker.reset_timeout.as_secs())
    };
    assert_eq!(figures("cache"), (7, 3, 10));
    assert_eq!(figures("graph"), (7, 2, 30));
    assert_eq!(figures("vector"), (9, 2, 30));
    assert_eq!(figures("not named"), (7, 2, 30));
}

#[test]
fn a_backend_is_called_as_all_are_where_it_says_nothing_else() {
    let file = file(
        "[call]\ntimeout = \"3s\"\nmax_concurrent = 64\n[call.retry]\nbackoff = \"10ms\"\n[saga]\nmax_retries = 5\n\
         [backends.cache.call]\ntimeout = \"50ms\"\n[backends.cache.call.retry]\nmax_retries = 0\n\
         [backends.graph.breaker]\nfailure_threshold = 7",
    );
    let config = Config::load_with(
        Some(file.path()),
        variables([
            ("SEAWALL__CALL__RETRY__BUDGET__CAPACITY", "20"),
            ("SEAWALL__BACKENDS__VECTOR__CALL__MAX_CONCURRENT", "8"),
        ]),
    )
    .unwrap();
    let figures = |name: &str| {
        let CallConfig { timeout, retry, max_concurrent } = config.call_of(&name.into());
        assert_eq!((retry.backoff, retry.budget.capacity), (Duration::from_millis(10), 20), "{name}");
        (timeout.as_millis(), retry.max_retries, *max_concurrent)
    };
    assert_eq!(figures("cache"), (50, 0, 64));
    assert_eq!(figures("graph"), (3_000, 5, 64));
    assert_eq!(figures("vector"), (3_000, 5, 8));
    assert_eq!(figures("not named"), (3_000, 5, 64));
}

#[test]
fn a_key_that_a_document_has_in_another_section_sets_ours() {
    for (theirs, ours) in MOVED {
        let (section, key) = theirs.rsplit_once('.').unwrap();
        let at = format!("/{}", ours.replace('.', "/"));
        let value = |config: &Config| tree(config).pointer(&at).unwrap().clone();
        let seven = file(&format!("[{section}]\n{key} = 7"));
        let variable = |path: &str| format!("SEAWALL__{path}").to_uppercase().replace('.', "__");
        let loaded = Config::load_with(Some(seven.path()), []).unwrap();
        assert_eq!(value(&loaded), json!(7), "{theirs}");
        for path in [theirs, ours] {
            let loaded = Config::load_with(Some(seven.path()), [(variable(path), "9".to_owned())]).unwrap();
            assert_eq!(value(&loaded), json!(9), "{path} goes over a file");
        }
        assert_eq!(paths(Config::from_toml(&format!("{theirs} = 7\n{ours} = 7"))), [*theirs]);
        assert_eq!(paths(Config::from_toml(&format!("{theirs} = \"many\""))), [*ours]);
    }
    assert_eq!(paths(Config::from_toml("saga.max_retries = 7\ncall = 1")), ["call"]);
}

#[test]
fn unknown_keys_are_refused_with_their_path_and_what_is_known() {
    let found = problems(Config::load_with(
        Some(file("surprise = 1\n[breaker]\nfailure_treshold = 3\n[backends.graph]\nrole = 1\n[backends.graph.breaker]\nx = 1").path()),
        variables([("SEAWALL__LIMITS__BATHC", "5"), ("SEAWALL__LIMIT__BATCH", "5"), ("SEAWALL____BATCH", "5")]),
    ));
    let paths: Vec<_> = found.iter().map(|(path, _)| path.as_str()).collect();
    let expected = [
        "SEAWALL____BATCH",
        "backends.graph.breaker.x",
        "backends.graph.role",
        "breaker.failure_treshold",
        "limit",
        "limits.bathc",
        "surprise",
    ];
    assert_eq!(paths, expected);
    assert!(found[3].1.contains("`failure_threshold`"), "{found:?}");
    assert!(found[4].1.contains("limits") && found[4].1.contains("SEAWALL__LIMIT__BATCH"), "{found:?}");
    assert!(found[5].1.contains("(set by SEAWALL__LIMITS__BATHC)"), "{found:?}");
}

#[test]
fn everything_that_is_wrong_is_told_at_once() {
    let text = r#"
        data_dir = 5
        fallback = "queue_writes"
        [limits]
        key_bytes = 0
        batch = "many"
        colour = "red"
        [queue]
        max_bytes = 1
        retry_after = -3
        [metrics]
        listen = "0.0.0.0:9464"
        sample_interval = 0
        [breaker]
        failure_threshold = 0
        [backends.graph.breaker]
        success_threshold = 0
    "#;
    let result = Config::load_with(Some(file(text).path()), variables([("CIRCUIT_TIMEOUT", "soon")]));
    let expected = [
        "backends.graph.breaker.success_threshold",
        "breaker.failure_threshold",
        "breaker.reset_timeout",
        "data_dir",
        "fallback",
        "limits.batch",
        "limits.colour",
        "limits.key_bytes",
        "limits.write_bytes",
        "metrics.listen",
        "metrics.sample_interval",
        "queue.max_bytes",
        "queue.retry_after",
    ];
    let error = result.unwrap_err();
    let paths: Vec<_> = error.problems.iter().map(|found| found.path.as_str()).collect();
    assert_eq!(paths, expected);
    let text = error.to_string();
    assert_eq!(text.lines().count(), 1 + expected.len(), "{text}");
    assert!(expected.iter().all(|path| text.contains(path)), "{text}");
    assert!(text.contains("(set by CIRCUIT_TIMEOUT)"), "{text}");
}

#[test]
fn a_file_that_is_missing_or_no_toml_is_told_beside_what_else_is_wrong() {
    let missing = Config::load_with(Some(Path::new("/nowhere/seawall.toml")), variables([("CIRCUIT_TIMEOUT", "soon")]));
    assert_eq!(paths(missing), ["/nowhere/seawall.toml", "breaker.reset_timeout"]);
    let broken = file("[limits]\nbatch = ");
    let found = problems(Config::load_with(Some(broken.path()), variables([("CIRCUIT_TIMEOUT", "soon")])));
    assert_eq!(found.len(), 2);
    assert!(found.iter().any(|(path, problem)| path.ends_with(".toml") && problem.contains("line 2")), "{found:?}");
}

#[test]
fn a_section_that_one_source_takes_for_a_value_is_told() {
    let set = [("SEAWALL__LIMITS", "5"), ("SEAWALL__LIMITS__BATCH", "6")];
    assert_eq!(paths(with_variables(set)), ["limits"]);
    assert_eq!(paths(Config::from_toml("backends = 1")), ["backends"]);
    assert_eq!(paths(Config::from_toml("backends.graph = 1")), ["backends.graph"]);
    assert_eq!(paths(Config::from_toml("backends.graph.breaker = 1")), ["backends.graph.breaker"]);
}

#[test]
fn a_page_that_others_can_reach_must_be_asked_for() {
    for (listen, remote, fine) in [
        ("127.0.0.1:0", false, true),
        ("[::1]:9464", false, true),
        ("0.0.0.0:9464", false, false),
        ("[::]:9464", false, false),
        ("192.0.2.1:9464", false, false),
        ("0.0.0.0:9464", true, true),
    ] {
        let text = format!("[metrics]\nlisten = \"{listen}\"\nallow_remote = {remote}");
        assert_eq!(Config::from_toml(&text).is_ok(), fine, "{listen}");
    }
}

#[test]
fn values_that_do_not_go_together_are_told() {
    let text =
        "[queue]\nmax_entries = 50\nmax_bytes = 1_048_576\n[health]\ninterval = 3\n[limits]\nwrite_bytes = 2_000_000";
    assert_eq!(paths(Config::from_toml(text)), ["health.timeout", "limits.write_bytes", "sync.batch"]);
}

#[test]
fn a_home_that_is_not_known_is_told() {
    assert_eq!(paths(with_variables([("FALLBACK_DB_PATH", "~/data")])), ["data_dir"]);
    assert_eq!(paths(Config::from_toml("data_dir = \"\"")), ["data_dir"]);
}

fn toml_like() -> impl Strategy<Value = String> {
    let name = prop_oneof![
        4 => prop::sample::select(vec![
            "breaker", "limits", "queue", "fallback", "cache", "levels", "backends", "graph", "metrics", "data_dir",
            "failure_threshold", "reset_timeout", "timeout_seconds", "excluded_errors", "batch", "dimension",
            "retry_after", "listen", "mode", "profile", "max_size", "ttl", "normal",
        ])
        .prop_map(str::to_owned),
        1 => "[a-z\"\\[\\].-]{1,6}",
    ];
    let value = prop_oneof![
        any::<i64>().prop_map(|number| number.to_string()),
        any::<f64>().prop_map(|number| format!("{number:?}")),
        any::<bool>().prop_map(|flag| flag.to_string()),
        "\"[ -~]{0,8}\"",
        prop::sample::select(vec![
            "[]",
            "[1, \"a\"]",
            "{}",
            "{ a = 1 }",
            "\"queue_writes\"",
            "\"1h\"",
            "1979-05-27",
            "nan"
        ])
        .prop_map(str::to_owned),
        "[ -~]{0,6}",
    ];
    let line = prop_oneof![
        2 => (name.clone(), value).prop_map(|(key, value)| format!("{key} = {value}")),
        1 => prop::collection::vec(name, 1..4).prop_map(|path| format!("[{}]", path.join("."))),
    ];
    prop::collection::vec(line, 0..8).prop_map(|lines| lines.join("\n"))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn whatever_is_read_either_can_be_used_or_is_refused(text in toml_like(), noise in ".{0,64}") {
        for text in [text, noise] {
            match Config::from_toml(&text) {
                Ok(config) => prop_assert_eq!(config.validate(), Ok(())),
                Err(error) => prop_assert!(!error.problems.is_empty()),
            }
        }
    }

    #[test]
    fn whatever_the_environment_says_is_used_or_refused(
        set in prop::collection::vec(
            (
                prop::sample::select(vec![
                    "BREAKER", "BREAKER__RESET_TIMEOUT", "LIMITS__DIMENSION", "QUEUE__RETRY_AFTER", "DATA_DIR",
                    "BACKENDS__GRAPH__BREAKER__FAILURE_THRESHOLD", "BACKENDS__GRAPH", "FALLBACK__LEVELS__NO_GRAPH",
                    "METRICS__LISTEN", "A__B", "__", "A.B[9]",
                ]),
                prop_oneof!["[ -~]{0,8}", any::<f64>().prop_map(|number| number.to_string())],
            ),
            0..5,
        ),
    ) {
        let set = set.into_iter().map(|(name, text)| (format!("SEAWALL__{name}"), text));
        if let Ok(config) = Config::load_with(None, set) {
            prop_assert_eq!(config.validate(), Ok(()));
        }
    }
}

#[cfg(not(feature = "redis"))]
#[test]
fn a_section_for_redis_says_which_feature_it_needs() {
    for result in [Config::from_toml("[redis]\nenabled = true"), with_variables([("SEAWALL__REDIS__ENABLED", "true")])]
    {
        let found = problems(result);
        assert!(found.len() == 1 && found[0].0 == "redis" && found[0].1.contains("cargo feature"), "{found:?}");
    }
    let found = problems(Config::from_toml("[backends.cache.redis_cache]"));
    assert!(found.len() == 1 && found[0].1.contains("cargo feature `redis`"), "{found:?}");
}
