//! The command line of `vipr run`, made from the table of knobs; kube-proxy's flags are taken in Go's spelling, too
//! (`--masquerade-all`, `--masquerade-all=true`, `-v=2`).

use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches, error::Error, parser::ValueSource};

use super::{
    knobs::{ALIASES, KNOBS, Kind, Knob, Role},
    values::{Given, Origin, Values},
};

/// What stands on the command line.
#[derive(Clone, Debug, Default)]
pub struct Flags(Values);

impl Flags {
    /// What stands on the command line, and where nothing does, in the environment.
    pub fn with_env(self, env: impl Fn(&str) -> Option<String>) -> Values {
        let Self(mut values) = self;
        for knob in KNOBS.iter().filter(|knob| !knob.flag.is_empty()) {
            if values.given(knob.key()).is_none()
                && let Some(text) = env(&knob.env())
            {
                values.0.insert(knob.key(), Given { texts: vec![text], origin: Origin::Env(knob.env()) });
            }
        }
        values
    }
}

impl FromArgMatches for Flags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        let mut values = Values::default();
        for knob in KNOBS.iter().filter(|knob| !knob.flag.is_empty()) {
            if matches.value_source(knob.flag) == Some(ValueSource::CommandLine) {
                let texts = matches.get_many::<String>(knob.flag).into_iter().flatten().cloned().collect();
                values.0.insert(knob.key(), Given { texts, origin: Origin::Flag(knob.flag) });
            }
        }
        Ok(Self(values))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Args for Flags {
    fn augment_args(command: Command) -> Command {
        command.args(KNOBS.iter().filter(|knob| !knob.flag.is_empty()).map(arg))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

fn arg(knob: &'static Knob) -> Arg {
    let default = if knob.default.is_empty() { "unset" } else { knob.default };
    let choices = match knob.kind {
        Kind::Choice(choices) => format!(" [{}]", choices.join(", ")),
        _ => String::new(),
    };
    let arg = Arg::new(knob.flag)
        .long(knob.flag)
        .aliases(ALIASES.iter().filter(|(flag, _)| *flag == knob.flag).map(|(_, alias)| *alias))
        .help(format!("{}{choices} [default: {default}] [env: {}]", knob.help, knob.env()))
        .allow_hyphen_values(matches!(knob.kind, Kind::Number(..)));
    let arg = match knob.kind {
        Kind::Switch => {
            arg.num_args(0..=1).require_equals(true).default_missing_value("true").value_name("BOOL")
        }
        Kind::List | Kind::Gates => arg.action(ArgAction::Append).value_name("LIST"),
        Kind::Number(..) => arg.value_name("NUMBER"),
        Kind::Duration => arg.value_name("DURATION"),
        Kind::Ip | Kind::Listen => arg.value_name("ADDRESS"),
        Kind::Choice(_) => arg.value_name("NAME"),
        Kind::Text | Kind::Any => arg.value_name("TEXT"),
    };
    let arg = match knob.kind {
        Kind::List | Kind::Gates => arg,
        // As in Go the last one counts.
        _ => arg.action(ArgAction::Set).overrides_with(knob.flag),
    };
    let arg = if knob.flag == "v" { arg.short('v') } else { arg };
    match knob.role {
        Role::Overrides => arg,
        Role::Used => arg.help_heading("kube-proxy's options (ignored with --config: the file has them)"),
        Role::Ignored => arg.help_heading("kube-proxy's options without effect here").hide_short_help(true),
    }
}
