-- Returns the table and the time for comparison with the expiries. Writes nothing.

return run(function()
  read_format()
  read_fleet()
  read_workers()
  return { digits(millis), read_whole() }
end, function() end)
