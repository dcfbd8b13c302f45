//! The program itself, as systemd, an operator and a shell meet it.

#![cfg(feature = "daemon")]

#[path = "../support/mod.rs"]
#[macro_use]
mod support;

mod commands;
mod configuration;
mod holds;
mod home;
mod jobs;
mod mistakes;
mod notify;
mod plans;
mod receipts;
#[path = "../sample/mod.rs"]
mod sample;
mod server_wide;
mod service;
