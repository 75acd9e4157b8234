-- Saves checkpoints, all in one step, and none of them backwards.
--
-- ARGV  shard, checkpoint, shard, checkpoint, …
--
-- Answers the first shard whose checkpoint cannot be parsed, which stays as it is.
--
-- Running it twice changes nothing.

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
