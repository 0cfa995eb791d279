use super::*;

#[test]
fn x() {
    let e = Config::load_with(
        None,
        [
            ("SEAWALL__LIMITS__KEY_BYTES".to_owned(), "5.5".to_owned()),
            ("SEAWALL__LIMITS__NOPE".to_owned(), "5".to_owned()),
            ("SEAWALL__DATA_DIR".to_owned(), "5".to_owned()),
            ("SEAWALL__LIMIT__NOPE".to_owned(), "5".to_owned()),
            ("SEAWALL__QUEUE__RETRY_AFTER".to_owned(), "-5.5".to_owned()),
        ],
    );
    println!("{e:?}");
    println!("{}", e.unwrap_err());
    println!("{:?}", Config::from_toml("[queue]\nmax_queue_size=5\nmax_bytes=0\nretry_after=1.5\n"));
    println!(
        "{}",
        Config::from_toml(
            "limits=3\n[queue]\nmax_queue_size=true\nmax_bytes=0.5\nretry_after=-3\na=1\n[data_dir]\nb=1"
        )
        .unwrap_err()
    );
    println!("{}", Config::from_toml("limits=\n[queue]\nmax_queue_size=true").unwrap_err());
}
