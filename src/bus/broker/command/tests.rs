//! The command table, word by word.

use proptest::prelude::*;

use super::*;

fn read(line: &str) -> Result<Command, String> {
    let words = line.split(' ').map(|word| Bytes::from(word.to_owned())).collect();
    parse(words).map_err(|error| error.to_string())
}

fn set_to(expiry: Expiry, condition: Option<Condition>, get: bool) -> Command {
    Command::Set(SetCommand { key: "k".into(), value: "v".into(), expiry, condition, get })
}

#[test]
fn set_takes_its_options_in_any_order_and_case() {
    let minute = Expiry::After(Duration::from_mins(1));
    assert_eq!(read("SET k v"), Ok(set_to(Expiry::Never, None, false)));
    assert_eq!(read("set k v ex 60"), Ok(set_to(minute, None, false)));
    assert_eq!(read("SET k v PX 60000 NX"), Ok(set_to(minute, Some(Condition::IfAbsent), false)));
    assert_eq!(read("SET k v xx get KeepTTL"), Ok(set_to(Expiry::Keep, Some(Condition::IfPresent), true)));
    assert_eq!(read("SET k v NX NX GET"), Ok(set_to(Expiry::Never, Some(Condition::IfAbsent), true)));
}

#[test]
fn refusals_use_the_words_of_redis() {
    let cases = [
        ("SET k v NX XX", "ERR syntax error"),
        ("SET k v EX", "ERR syntax error"),
        ("SET k v EX 1 PX 1", "ERR syntax error"),
        ("SET k v EX 1 KEEPTTL", "ERR syntax error"),
        ("SET k v LATER", "ERR syntax error"),
        ("SET k v EX soon", "ERR value is not an integer or out of range"),
        ("SET k v EX 0", "ERR invalid expire time in 'set' command"),
        ("SET k v PX -1", "ERR invalid expire time in 'set' command"),
        ("SET k v EX 9223372036854775807", "ERR invalid expire time in 'set' command"),
        ("EXPIRE k 9223372036854775807", "ERR invalid expire time in 'expire' command"),
        ("EXPIRE k 1 maybe", "ERR Unsupported option maybe"),
        ("GET", "ERR wrong number of arguments for 'get' command"),
        ("get a b", "ERR wrong number of arguments for 'get' command"),
        ("SUBSCRIBE", "ERR wrong number of arguments for 'subscribe' command"),
        ("CLIENT", "ERR wrong number of arguments for 'client' command"),
        ("CLIENT SETNAME", "ERR wrong number of arguments for 'client|setname' command"),
        ("CLIENT WALTZ now", "ERR unknown subcommand 'WALTZ'. Try CLIENT HELP."),
        ("CLIENT SETINFO lib-mood ok", "ERR Unrecognized option 'lib-mood'"),
        ("CLIENT SETNAME a\nb", "ERR Client names cannot contain spaces, newlines or special characters."),
        ("SELECT 1", "ERR DB index is out of range"),
        ("SELECT one", "ERR value is not an integer or out of range"),
        ("HELLO 4", "NOPROTO unsupported protocol version"),
        ("HELLO three", "ERR Protocol version is not an integer or out of range"),
        ("HELLO 3 AUTH default", "ERR Syntax error in HELLO option 'AUTH'"),
        ("FLY", "ERR unknown command 'FLY', with args beginning with: "),
        ("Fly a b", "ERR unknown command 'Fly', with args beginning with: 'a' 'b' "),
    ];
    for (line, text) in cases {
        assert_eq!(read(line), Err(text.to_owned()), "{line}");
    }
}

#[test]
fn long_words_are_not_echoed_whole() {
    let error = read(&format!("{} {}", "x".repeat(100_000), "y ".repeat(100_000))).unwrap_err();
    assert!(error.len() < 1000, "{} bytes", error.len());
}

#[test]
fn expire_in_the_past_is_a_deletion() {
    assert_eq!(read("EXPIRE k 0"), Ok(Command::Expire { key: "k".into(), after: None }));
    assert_eq!(read("EXPIRE k -5"), Ok(Command::Expire { key: "k".into(), after: None }));
}

#[test]
fn clients_introduce_themselves() {
    assert_eq!(
        read("HELLO 3 AUTH default x SETNAME me"),
        Ok(Command::Hello { protocol: Some(Protocol::Resp3), user: Some("default".into()), name: Some("me".into()) })
    );
    assert_eq!(read("COMMAND DOCS"), Ok(Command::Document));
    assert_eq!(read("COMMAND"), Ok(Command::Describe));
    assert_eq!(read("CLIENT NO-TOUCH on"), Ok(Command::Client(ClientCommand::Acknowledge)));
}

proptest! {
    #[test]
    fn no_request_panics(name in "[a-z]{0,12}|set|client|hello|expire|auth", arguments in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..30), 0..6)) {
        let mut request = vec![Bytes::from(name)];
        request.extend(arguments.into_iter().map(Bytes::from));
        if let Ok(command) = parse(request) {
            prop_assert!(!command.name().is_empty());
        }
    }
}
