CREATE TABLE IF NOT EXISTS orders (number TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS positions (
    shard TEXT PRIMARY KEY, checkpoint TEXT NOT NULL, epoch INTEGER NOT NULL
);
CREATE TRIGGER IF NOT EXISTS fence BEFORE INSERT ON positions
WHEN EXISTS (SELECT * FROM positions WHERE shard = NEW.shard AND epoch > NEW.epoch)
BEGIN
    SELECT RAISE(ABORT, 'another worker has acquired the shard');
END;
