"""The formats of exported files, one a file; `convzoo.deploy` lists them and says what each offers."""
