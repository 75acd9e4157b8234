-- Saves checkpoints in one step, and none backwards.
--
-- ARGV  shard, checkpoint, shard, checkpoint, …
--
-- Returns the first shard with a stored checkpoint that cannot be parsed; that checkpoint is not
-- changed.
--
-- The script is idempotent.

return run(function()
  read_format()
  local first = false
  for index = 1, #ARGV, 2 do
    local shard = ARGV[index]
    place(shard)
    if unreadable[CHECKPOINTS][shard] then
      first = first or shard
    else
      advance(shard, parse(ARGV[index + 1]))
    end
  end
  return first
end, function()
  write_format()
  write_places()
end)
