fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt().init();
    let file = std::env::args().nth(1).unwrap();
    let config = parhelion::ops::config::Config::load(std::path::Path::new(&file))?;
    let rt = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    rt.block_on(parhelion::ops::region::run(config, parhelion::ops::region::RunOptions::default()))
}
