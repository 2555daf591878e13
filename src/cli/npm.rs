//! The command lines of the Node image, which compose files keep passing when only the image's name changes.

use super::Command;

/// What the arguments after `npm` mean here, or why there is no such thing.
pub(super) fn command(arguments: &[String]) -> Result<Command, String> {
    let words = arguments.iter().map(String::as_str).filter(|word| !word.starts_with('-')).collect::<Vec<_>>();
    match *words.as_slice() {
        ["start"] | ["run" | "run-script", "start"] => Ok(Command::Serve),
        ["run" | "run-script", "hocuspocus"] => Err("collaborative editing is not part of this build yet; \
             keep the image loomio/loomio_channel_server for the hocuspocus container, \
             and use this one for the channels container"
            .to_owned()),
        _ => Err(format!("there is no `npm {}` here; leave the command out to serve live updates", words.join(" "))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(line: &str) -> Result<Command, String> {
        command(&line.split(' ').map(String::from).collect::<Vec<_>>())
    }

    #[test]
    fn start_serves_in_every_spelling() {
        for line in ["start", "run start", "run --silent start", "run-script start"] {
            assert_eq!(of(line), Ok(Command::Serve), "{line}");
        }
    }

    #[test]
    fn hocuspocus_is_named_and_the_way_out_too() {
        let problem = of("run hocuspocus").unwrap_err();
        assert!(problem.contains("not part of this build") && problem.contains("loomio/loomio_channel_server"));
        assert!(of("run bots").unwrap_err().contains("`npm run bots`"));
        assert!(of("").is_err());
    }
}
