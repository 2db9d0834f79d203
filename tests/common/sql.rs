//! SQL as people send it: through psql where it is installed, else through a driver (and that is said on stderr).

use super::{Ready, run, text};
use std::process::Command;
use std::sync::OnceLock;

/// A program of PostgreSQL's, or of others, where it is installed.
pub fn program(name: &str) -> Option<String> {
    let places = [format!("/usr/bin/{name}"), format!("/usr/local/bin/{name}"), format!("/usr/lib/postgresql/15/bin/{name}")];
    places.into_iter().find(|p| std::path::Path::new(p).exists())
}

fn psql() -> Option<&'static str> {
    static PSQL: OnceLock<Option<String>> = OnceLock::new();
    let found = PSQL.get_or_init(|| {
        let found = program("psql");
        if found.is_none() {
            eprintln!("psql is not installed: its part is played by a driver");
        }
        found
    });
    found.as_deref()
}

/// The environment that PostgreSQL's programs take their connection from.
pub fn environment(command: &mut Command, ready: &Ready, address: &str) {
    let (host, port) = address.rsplit_once(':').expect("host:port");
    command.env("PGHOST", host).env("PGPORT", port).env("PGUSER", &ready.user).env("PGPASSWORD", &ready.password);
    command.env("PGDATABASE", &ready.database).env("PGCONNECT_TIMEOUT", "20");
}

impl Ready {
    /// Runs a script. Rows come as lines with `|` between the columns; of an error psql's own words, with the SQLSTATE.
    pub fn sql(&self, address: &str, script: &str) -> Result<String, String> {
        match psql() {
            Some(psql) => self.through_psql(psql, address, script),
            None => self.through_driver(address, script),
        }
    }

    /// As [`Ready::sql`]; an error ends the test.
    pub fn must(&self, address: &str, script: &str) -> String {
        self.sql(address, script).unwrap_or_else(|e| panic!("{address}: {script:.200}: {e}"))
    }

    fn through_psql(&self, psql: &str, address: &str, script: &str) -> Result<String, String> {
        let mut command = Command::new(psql);
        command.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-v", "VERBOSITY=verbose", "-f", "-"]);
        environment(&mut command, self, address);
        let output = run(&mut command, script);
        if output.status.success() { Ok(text(&output.stdout).trim_end().to_owned()) } else { Err(text(&output.stderr)) }
    }

    fn through_driver(&self, address: &str, script: &str) -> Result<String, String> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let client = self.connect(address).await.map_err(|e| said(&e))?;
            let messages = client.simple_query(script).await.map_err(|e| said(&e))?;
            let rows = messages.iter().filter_map(|m| match m {
                tokio_postgres::SimpleQueryMessage::Row(row) => {
                    Some((0..row.len()).map(|i| row.get(i).unwrap_or_default()).collect::<Vec<_>>().join("|"))
                }
                _ => None,
            });
            Ok(rows.collect::<Vec<_>>().join("\n"))
        })
    }

    /// A driver's connection.
    ///
    /// # Errors
    /// The driver's.
    pub async fn connect(&self, address: &str) -> Result<tokio_postgres::Client, tokio_postgres::Error> {
        let (host, port) = address.rsplit_once(':').expect("host:port");
        let mut config = tokio_postgres::Config::new();
        config.host(host).port(port.parse().expect("a port")).user(&self.user).password(&self.password).dbname(&self.database);
        config.connect_timeout(std::time::Duration::from_secs(20));
        let (client, connection) = config.connect(tokio_postgres::NoTls).await?;
        tokio::spawn(async move { drop(connection.await) });
        Ok(client)
    }
}

/// As psql would print it.
pub fn said(error: &tokio_postgres::Error) -> String {
    error.as_db_error().map_or_else(|| error.to_string(), |e| format!("ERROR:  {}: {}", e.code().code(), e.message()))
}
